"""Signals that ask for a stop, and what a job does afterwards to be started again.

Inside a stage they are answered by `loop.stop_requests`, which saves first, or by `stops_raise`, where nothing can be
saved; elsewhere nothing is in the making that a new start would not redo, so the process may end at once. SLURM sends
SIGTERM when a job is preempted or cancelled, and what `--signal` names, here SIGUSR1 or SIGUSR2, before its time is up.
"""

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fasthebb_cli.compute.launch import launch
from fasthebb_cli.errors import Interrupted

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
REQUEUED = 60  # seconds in which SLURM ends the tasks of a job that it requeues
STOPPED = 130  # the exit code of a stopped run; the same command goes on


def stop_at_once(*_: object) -> None:
    alone = launch().size == 1  # of several processes it may be another's error that ends this one
    os.write(2, b"stopped; the same command goes on\n" if alone else b"stopped\n")
    for child in multiprocessing.active_children():  # workers take no signal that asks for a stop
        child.kill()
    os._exit(STOPPED)


@contextmanager
def stops_raise() -> Iterator[None]:
    """STOP_SIGNALS raise Interrupted in here, whatever is going on: for what takes long and can't be saved."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(*_: object) -> None:
        restore()  # a second signal must not disturb what the first one ends
        raise Interrupted("the start")

    try:
        for number in STOP_SIGNALS:
            signal.signal(number, on_signal)
        yield
    finally:
        restore()


@contextmanager
def stops_held() -> Iterator[None]:
    """STOP_SIGNALS wait meanwhile; processes that are started never get them, as they would go down before us."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def requeue() -> None:
    """In a job of submitit's, has submitit start it again, and does not return; elsewhere does nothing.

    Submitit acts on one signal of the user's and passes over SIGTERM. But a job that ends by itself while it is being
    preempted counts as failed, and SLURM does not requeue it; one that was cancelled must not come back.
    """
    handler = _submitits_handler()
    if handler is not None and not _is_cancelled():
        handler(signal.SIGUSR2, None)  # returns in all tasks but the first
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            time.sleep(REQUEUED)  # a task that ends could take the first one down before it has asked for the requeue


def _submitits_handler() -> Callable[[int, None], object] | None:
    for number in (signal.SIGUSR2, signal.SIGUSR1):  # SUBMITIT_PREEMPT_SIGNAL chooses
        handler = signal.getsignal(number)
        if callable(handler) and is_submitits(handler):
            return handler
    return None


def is_submitits(thing: object) -> bool:
    """Whether a function or an error is one of submitit's, which need not be installed."""
    return str(getattr(thing, "__module__", "")).startswith("submitit.")


def _is_cancelled() -> bool:
    """Whether SLURM is ending the job for good: a preempted one still counts as running while it may save."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return False
    job, array = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:  # whose last task has the number of the whole
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    state = subprocess.run(["squeue", "--noheader", "--jobs", job, "--format", "%T"], capture_output=True, text=True)
    return state.returncode == 0 and state.stdout.strip() != "RUNNING"
