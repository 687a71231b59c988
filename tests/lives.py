"""Processes in which tests run the command or a function: forked from one that has torch imported, or begun anew.

A `Moment` is a counted event at which a process sends itself a signal or waits for the test, so that no test depends on
how fast the machine is. What a test waits for ends after PATIENCE at the latest.
"""

import io
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from fasthebb_cli import cli
from fasthebb_cli.compute.launch import launch
from fasthebb_cli.compute.signals import STOP_SIGNALS

PATIENCE = 1100.0  # seconds: only a test that fails waits for so long, or until its own time limit
MARK = "FASTHEBB_TEST_RUN"  # in the environment of every process that a `Started` starts
# What a run imports on its way, hydra's plugins among it
PRELOADED = [
    "tests.lives",
    "fasthebb_cli.run.cell",
    "sklearn.datasets",
    "sklearn.neighbors",
    "torch._dynamo",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher",
    "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher",
]


class Moment(NamedTuple):
    """The `number`-th event after a stage began, at which one process acts.

    Args:
        number: of events; 0 never comes.
        stage: kind of the stage from whose begin on events count; "start": from the command's begin.
        calls: count what Python calls, and returns from, so that moments lie everywhere; else count decisions, of
            which there is one after each step, each batch of a validation and each epoch.
        signal: what the process sends itself; None: it waits until the test lets it go on.
        rank: of the process that acts.
        everyone: all processes of the run get the signal at once.
    """

    number: int
    stage: str = "start"
    calls: bool = False
    signal: int | None = signal.SIGKILL
    rank: int = 0
    everyone: bool = False


class Life:
    """A target that `size` processes call, which know of each other as under torchrun and have torch imported already.

    Args:
        log: file of what they print.
        variables: of their environment.
    """

    def __init__(
        self, target: Callable[..., object], log: Path, *, size: int = 1, variables: Mapping[str, str] | None = None
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.test, other = context.Pipe()
        self.process = context.Process(target=_live, args=(target, size, dict(variables or {}), log, other))
        self.process.start()
        other.close()
        _living.append(self)

    def reached(self) -> None:
        """Waits for the moment at which the life waits for the test."""
        try:
            assert self.test.poll(PATIENCE), "the moment does not come"
            self.test.recv()
        except EOFError:
            raise AssertionError(f"it ended before the moment came: {self.text()}") from None

    def go_on(self) -> None:
        self.test.send("go on")

    def kill(self) -> None:
        """All its processes."""
        if self.process.exitcode is None and self.process.pid is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:  # before it has made a group of its own
                self.process.kill()

    def wait(self) -> int:
        """Its exit code: that of its processes if it is the same for all, else 1."""
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.kill()
            raise AssertionError(f"it does not end: {self.text()}")
        return self.process.exitcode

    def text(self) -> str:
        """What it printed up to its end."""
        self.wait()
        return self.log.read_text()


_living: list[Life] = []


def end_lives() -> None:
    """Kills those that a failed test left."""
    while _living:
        _living.pop().kill()


def command(words: Sequence[str], moment: Moment | None = None, events: Path | None = None) -> partial[None]:
    """`fasthebb` with such words, as a target of a Life.

    Args:
        events: a file that gets a line for each stage that is left: its kind, and how many events it had.
    """
    return armed(partial(_command, list(words)), moment, events)


def armed(target: Callable[[], object], moment: Moment | None, events: Path | None = None) -> partial[None]:
    """The same with any other target."""
    return partial(_armed, target, moment, events)


def finished(words: Sequence[str], log: Path, code: int = 0, **settings: Any) -> str:
    """What `fasthebb` prints that ends with that exit code."""
    life = Life(command(words), log, **settings)
    assert life.wait() == code, life.text()
    return life.text()


class Started:
    """A run that begins with Python's start, as a user's does.

    Args:
        moment: comes in the process itself; one without a signal stops the process until it gets SIGCONT.
        size: more than one are started by torchrun.
    """

    def __init__(
        self, words: Sequence[str], moment: Moment | None = None, *, size: int = 1, variables: Mapping[str, str]
    ) -> None:
        module = ["-m", "fasthebb_cli"]
        if moment is not None:
            module = ["-m", "tests.lives", json.dumps(moment)]
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(size)] if size > 1 else []
        self.mark = f"{os.getpid()}.{len(_started)}"
        _started.append(self.mark)
        self.process = subprocess.Popen(
            [sys.executable, *torchrun, *module, *words],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), MARK: self.mark} | dict(variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def reached(self) -> None:
        """Waits for a moment without a signal."""
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def numbers(self) -> list[int]:
        """Of all its processes that live."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}\0".encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def send(self, number: signal.Signals) -> None:
        """To all its processes."""
        for process in self.numbers():
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue

    def wait(self) -> tuple[int, str]:
        """Its exit code and what it printed."""
        try:
            text = self.process.communicate(timeout=PATIENCE)[0]
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            raise AssertionError(f"it does not end: {self.process.communicate()[0]}") from None
        return self.process.returncode, text


_started: list[str] = []


def environments(size: int) -> list[dict[str, str]]:
    """What torchrun tells each of `size` processes."""
    if size == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)} for rank in range(size)]
    return [run | rank for rank in ranks]


_test: Connection | None = None  # of a Life's process: the test that waits for it


def _live(target: Callable[[], object], size: int, variables: dict[str, str], log: Path, test: Connection) -> None:
    import torch

    global _test
    _test = test
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # a loader that started the fork server had them blocked
    os.environ.update(variables)
    torch.set_num_threads(1)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a process that is killed has said what it said
    if size == 1:
        target()
        return
    numbers = [_fork(target, told) for told in environments(size)]
    test.close()
    codes = {os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) for number in numbers}
    sys.exit(codes.pop() if len(codes) == 1 else 1)


def _fork(target: Callable[[], object], told: Mapping[str, str]) -> int:
    """The number of a new process, which calls the target."""
    number = os.fork()
    if number:
        return number
    from fasthebb_cli.compute import processes

    code = 1
    try:
        os.environ.update(told)
        target()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  it must not return into what forked it
        traceback.print_exc()
    finally:
        processes.leave()  # which Python's end would call
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _command(words: list[str]) -> None:
    sys.argv = ["fasthebb", *words]
    cli.main()


def _armed(target: Callable[[], object], moment: Moment | None, events: Path | None) -> None:
    """Counts events of this process, and acts at the moment if it is for this process to act."""
    if moment is None or launch().rank != moment.rank:
        target()
        return
    stage, here, since = "start", 0, 0  # the stage, events in it, and events since that of the moment began

    def event() -> None:
        nonlocal here, since
        here, since = here + 1, since + 1
        if since == moment.number:
            report()
            _act(moment)

    def report() -> None:
        if events is not None:
            with events.open("a") as file:
                file.write(f"{stage} {here}\n")

    def begin(kind: str, make: Callable[[Any], Any], context: Any) -> Any:
        nonlocal stage, here
        report()
        stage, here = kind, 0
        if kind == moment.stage and not since:
            count()
        return make(context)

    def count() -> None:
        if moment.calls:
            sys.setprofile(lambda *_: event())
        else:
            stack.enter_context(_decisions(event))

    with ExitStack() as stack:
        stack.callback(report)
        stack.callback(sys.setprofile, None)
        if moment.stage == "start":
            count()
        if moment.stage != "start" or events is not None:  # else nothing is imported before the command does it
            from fasthebb_cli.stages import STAGES

            stack.enter_context(patch.dict(STAGES, {kind: partial(begin, kind, make) for kind, make in STAGES.items()}))
        target()


@contextmanager
def _decisions(event: Callable[[], None]) -> Iterator[None]:
    """Meanwhile every decision is an event."""
    from fasthebb_cli.compute import processes

    decide = processes.decide

    def on_decision(**asked: bool) -> Any:
        if "stop" in asked:
            event()
        return decide(**asked)

    with patch.object(processes, "decide", on_decision):
        yield


def _act(moment: Moment) -> None:
    if moment.signal is not None:
        if moment.everyone:
            os.killpg(0, moment.signal)
        signal.raise_signal(moment.signal)
    elif _test is None:
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        _test.send("here")
        _test.recv()


if __name__ == "__main__":
    command(sys.argv[2:], Moment(*json.loads(sys.argv[1])))()
