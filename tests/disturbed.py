"""Runs that are disturbed from outside, and what must be the same afterwards as in one that was left alone."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.conftest import SMALL

FASTHEBB = (sys.executable, "-m", "fasthebb_cli")
TIMES = ("seconds", "images_per_second", "finished")
MARK = "FASTHEBB_TEST_RUN"  # in the environment of every process of a run


def start(
    out: Path, save_seconds: float, *arguments: str, command: Sequence[str] = FASTHEBB
) -> "subprocess.Popen[str]":
    """`fasthebb train` on SMALL, by a process of its own (or a `command` that starts several)."""
    environment = os.environ | {"FASTHEBB_SAVE_SECONDS": str(save_seconds), "OMP_NUM_THREADS": "1", MARK: str(out)}
    return subprocess.Popen(
        [*command, "train", *SMALL, "label_fraction=0.2", f"out={out}", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def undisturbed(out: Path, *arguments: str) -> dict[str, object]:
    """What a run gives that is left alone."""
    process = start(out, 1000, *arguments)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    return outcome(out)


def kill_at_random_moments(
    out: Path, kills: Mapping[str, int], *arguments: str, command: Sequence[str] = FASTHEBB, seed: int = 0
) -> Counter[str]:
    """Starts the command again and again, which saves after each step, kills it with -9, and at last lets it finish.

    Args:
        kills: how often in each stage, and as "start" on the way to the first; the moments are drawn from `seed`.

    Returns:
        How often each stage was killed: fewer times than asked for where it was done before.
    """
    moments = random.Random(seed)
    left, hit = Counter(kills), Counter[str]()
    while True:
        began = time.time()
        process = start(out, 0.0, *arguments, command=command)
        if left["start"] and moments.random() < left["start"] / left.total():
            stage = "start"
        else:
            stage = _wait_for_work(process, out, left, began)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait((2.0 if stage == "start" else 0.3) * moments.random() if stage else None)
        finished = process.poll()
        if finished is None:
            _kill_all(out)
            hit[stage] += 1
            left[stage] -= 1
        text = process.communicate()[0]
        if finished is not None:
            assert finished == 0, text
            return hit


def _wait_for_work(process: "subprocess.Popen[str]", out: Path, left: Mapping[str, int], began: float) -> str:
    """Until the process works on a stage that is to be killed again; its name, or nothing if there is none left."""
    while process.poll() is None and any(left.values()):
        for path in out.glob("*/metrics.jsonl"):  # written anew whenever a stage starts
            stage = path.parent.name.split("-")[-2]
            with contextlib.suppress(FileNotFoundError):
                if left.get(stage, 0) and path.stat().st_mtime > began and not (path.parent / "results.json").exists():
                    return stage
        time.sleep(0.01)
    return ""


def _kill_all(out: Path) -> None:
    """Every process of the run at once, also those that its first process has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={out}\0".encode() in (folder / "environ").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)


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
