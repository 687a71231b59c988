"""Runs that are disturbed from outside, and what must be the same afterwards as in one that was left alone."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fasthebb_cli import cli
from tests.conftest import SMALL

FASTHEBB = (sys.executable, "-m", "fasthebb_cli")
TWO = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "fasthebb_cli")  # processes
TIMES = ("seconds", "images_per_second", "finished")
MARK = "FASTHEBB_TEST_RUN"  # in the environment of every process of a run


def words(out: Path, *arguments: str) -> list[str]:
    return ["train", *SMALL, "label_fraction=0.2", f"out={out}", *arguments]


def variables(save_seconds: float) -> dict[str, str]:
    return {"FASTHEBB_SAVE_SECONDS": str(save_seconds), "OMP_NUM_THREADS": "1"}


def start(
    out: Path, save_seconds: float, *arguments: str, command: Sequence[str] = FASTHEBB
) -> "subprocess.Popen[str]":
    """`fasthebb train` on SMALL, by a process of its own (or a `command` that starts several)."""
    return subprocess.Popen(
        [*command, *words(out, *arguments)],
        env=os.environ | variables(save_seconds) | {MARK: str(out)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def undisturbed(out: Path, *arguments: str, command: Sequence[str] = FASTHEBB) -> dict[str, object]:
    """What a run gives that is left alone."""
    process = start(out, 1000, *arguments, command=command)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    return outcome(out)


# What a run imports on its way, hydra's plugins among it
PRELOADED = [
    "tests.disturbed",
    "fasthebb_cli.run.cell",
    "sklearn.datasets",
    "sklearn.neighbors",
    "torch._dynamo",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher",
    "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher",
]


class Life(Protocol):
    """One start of a run that saves after each step."""

    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def text(self) -> str: ...


class Started:
    """A life that begins with Python's start. Signals go to all processes that the command starts, at once."""

    def __init__(self, out: Path, *arguments: str, command: Sequence[str] = FASTHEBB) -> None:
        self.out, self.process = out, start(out, 0.0, *arguments, command=command)

    def poll(self) -> int | None:
        return self.process.poll()

    def kill(self) -> None:
        self.send(signal.SIGKILL)

    def numbers(self) -> list[int]:
        """Of all its processes that live."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{MARK}={self.out}\0".encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found

    def send(self, number: signal.Signals) -> None:
        for process in self.numbers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def text(self) -> str:
        return self.process.communicate(timeout=120)[0]


class Forked:
    """A life in processes that have torch imported already: a fiftieth of the time that a start takes."""

    def __init__(self, out: Path, *arguments: str, size: int = 1) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.log = out.with_suffix(".log")
        self.processes = []
        for environment in _environments(size):
            live = (words(out, *arguments), variables(0.0) | environment, self.log)
            self.processes.append(context.Process(target=_live, args=live))
        for process in self.processes:
            process.start()

    def poll(self) -> int | None:
        codes = [code for code in (process.exitcode for process in self.processes) if code is not None]
        return max(codes, key=abs) if len(codes) == len(self.processes) else None

    def kill(self) -> None:
        for process in self.processes:
            process.kill()

    def text(self) -> str:
        for process in self.processes:
            process.join()
        return self.log.read_text()


def _environments(size: int) -> list[dict[str, str]]:
    """What torchrun would tell each of `size` processes."""
    if size == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)} for rank in range(size)]
    return [run | rank for rank in ranks]


def _live(words: list[str], variables: dict[str, str], log: Path) -> None:
    os.environ.update(variables)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["fasthebb", *words]
    cli.main()


def kill_at_random_moments(
    out: Path, kills: Mapping[str, int], *arguments: str, size: int = 1, seed: int = 0
) -> Counter[str]:
    """Begins a run again and again, which saves after each step, kills it with -9, and at last lets it finish.

    Args:
        kills: how often in each stage, and as "start" on the way there; the moments are drawn from `seed`.
        size: how many processes the run has, which are all killed at once.

    Returns:
        How often each stage was killed: fewer times than asked for where it was done before.
    """
    moments = random.Random(seed)
    left, hit = Counter(kills), Counter[str]()
    while True:
        began = time.time()
        early = moments.random() * left.total() < left["start"]
        life: Life
        if early:
            life = Started(out, *arguments, command=TWO if size == 2 else FASTHEBB)
        else:
            life = Forked(out, *arguments, size=size)
        stage = "start" if early else _wait_for_work(life, out, left, began)
        end = time.monotonic() + (3.0 if early else 0.3) * moments.random()
        while life.poll() is None and (not stage or time.monotonic() < end):
            time.sleep(0.002)
        if life.poll() is None:
            life.kill()
            hit[stage] += 1
            left[stage] -= 1
            life.text()
        else:
            text = life.text()
            assert life.poll() == 0, text
            return hit


def _wait_for_work(life: Life, out: Path, left: Mapping[str, int], began: float) -> str:
    """Until it works on a stage that is to be killed again; the stage's name, or nothing if there is none left."""
    while life.poll() is None and any(left.values()):
        for path in out.glob("*/metrics.jsonl"):  # written anew whenever a stage starts
            stage = path.parent.name.split("-")[-2]
            with contextlib.suppress(FileNotFoundError):
                if left.get(stage, 0) and path.stat().st_mtime > began and not (path.parent / "results.json").exists():
                    return stage
        time.sleep(0.002)
    return ""


def outcome(out: Path) -> dict[str, object]:
    """Every weight file's bytes, and results and epochs without their times."""
    found: dict[str, object] = {}
    for path in sorted(out.glob("*/model.safetensors")):
        found[f"{path.parent.name}/weights"] = path.read_bytes()
    for path in sorted(out.glob("*/results.json")):
        results = json.loads(path.read_text())
        found[f"{path.parent.name}/results"] = {key: value for key, value in results.items() if key not in TIMES}
    for path in sorted(out.glob("*/metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[f"{path.parent.name}/epochs"] = [
            {key: value for key, value in line.items() if key not in TIMES} for line in lines
        ]
    return found
