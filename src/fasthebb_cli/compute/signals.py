"""Signals that ask the run to stop, and how a job asks to be started again.

Within a stage `loop.stop_requests` handles them: it saves a checkpoint first. Where there is nothing to save,
`stops_raise` does. Everywhere else the process ends at once (`stop_at_once`), as a new start repeats that work. SLURM
sends SIGTERM when a job is preempted or cancelled, and the signal that `--signal` names (here SIGUSR1 or SIGUSR2)
before its time is up.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from fasthebb_cli.compute.launch import launch
from fasthebb_cli.errors import Interrupted

STOP_SIGNALS: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup has the process ignore it
    STOP_SIGNALS += (signal.SIGHUP,)  # the terminal is gone
REQUEUED = 60  # seconds within which SLURM ends the tasks of a job that it requeues
SAVED = 60  # seconds within which cells of other processes must have saved what they learnt
STOPPED = 130  # exit code of a stopped run, which the same command resumes


def stop_at_once(*_: object) -> None:
    """Signal handler: ends this process and its workers. Cells that run in joblib's processes are saved first."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # a second one does not wait
    children = multiprocessing.active_children()
    cells = [child for child in children if type(child).__module__.startswith("joblib.")]  # of a sweep
    if cells:
        _keep_joblib_from_killing()
    for child in cells:
        _send(child.pid, signal.SIGTERM)
    until = time.monotonic() + SAVED
    while any(child.is_alive() for child in cells) and time.monotonic() < until:
        time.sleep(0.05)
    alone = launch().size == 1  # with several processes, this one may end because another failed
    os.write(2, b"stopped; the same command goes on\n" if alone else b"stopped\n")
    for child in children:  # workers block these signals, see stops_held
        _send(child.pid, signal.SIGKILL)
    os._exit(STOPPED)


def _keep_joblib_from_killing() -> None:
    """Once one of joblib's processes ends, a thread of its pool kills the others: they may not have saved yet.

    There is no public way to stop that, so we empty the thread's list of processes.
    """
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("joblib."):
            getattr(thread, "processes", {}).clear()


def _send(process: int | None, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        if process is not None:
            os.kill(process, number)


def end_cell() -> NoReturn:
    """Ends the process of a cell that was stopped. joblib's would catch SystemExit, and begin the next cell."""
    if multiprocessing.parent_process() is None:
        sys.exit(STOPPED)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(STOPPED)


@contextmanager
def stops_raise() -> Iterator[None]:
    """Within this context STOP_SIGNALS raise Interrupted at once: for long work that can't be saved."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(*_: object) -> None:
        restore()  # a second signal must not raise within the clean-up after the first
        raise Interrupted("the start")

    try:
        for number in STOP_SIGNALS:
            signal.signal(number, on_signal)
        yield
    finally:
        restore()


@contextmanager
def late_stop(seconds: float) -> Iterator[None]:
    """Within this context a stage that runs when the time is up is stopped as by a signal, and saves a checkpoint.

    What is done between stages goes on: the alarm rings each second until a stage hears it.
    """

    def ring(*_: object) -> None:
        signal.raise_signal(signal.SIGUSR1)

    before = signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before[0])
        signal.signal(signal.SIGUSR1, before[1])


@contextmanager
def stops_held() -> Iterator[None]:
    """Within this context STOP_SIGNALS wait. Processes started in it never get them: workers must not end before us."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def requeue() -> None:
    """Asks submitit to start this job again, and does not return. Does nothing in a process that submitit has not
    started, or in a job that was cancelled.

    Submitit requeues on one signal that the user chooses, and ignores SIGTERM. But SLURM counts a preempted job that
    ends by itself as failed and does not requeue it, so we call submitit's handler ourselves.
    """
    handler = _submitits_handler()
    if handler is None or _is_cancelled():
        return
    is_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    try:
        with stops_held():  # once SLURM knows, it ends all processes of the job, and scontrol before it has its answer
            handler(signal.SIGUSR2, None)  # returns in all tasks but the first, which asks for the requeue
    except subprocess.CalledProcessError:
        if is_slurm:
            time.sleep(REQUEUED)  # SLURM refuses if it requeues a preempted job itself at this moment, and ends us soon
        raise
    if is_slurm:
        time.sleep(REQUEUED)  # SLURM may end the whole job with its first task that ends: wait for the requeue


def _submitits_handler() -> Callable[[int, None], object] | None:
    """The signal handler that submitit has installed; None if there is none."""
    for number in (signal.SIGUSR2, signal.SIGUSR1):  # SUBMITIT_PREEMPT_SIGNAL chooses
        handler = signal.getsignal(number)
        if callable(handler) and is_submitits(handler):
            return handler
    return None


def is_submitits(thing: object) -> bool:
    """Whether submitit defines this function or error. Works if submitit is not installed."""
    return str(getattr(thing, "__module__", "")).startswith("submitit.")


def _is_cancelled() -> bool:
    """Whether SLURM cancels this job. A preempted one is still RUNNING during its grace period."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return False
    job, array = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:  # the last task's SLURM_JOB_ID is the number of the whole array
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    state = subprocess.run(["squeue", "--noheader", "--jobs", job, "--format", "%T"], capture_output=True, text=True)
    return state.returncode == 0 and state.stdout.strip() != "RUNNING"
