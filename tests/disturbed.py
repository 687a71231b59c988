"""Runs that are disturbed from outside, and what must be the same afterwards as in one that was left alone."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import SMALL

FASTHEBB = (sys.executable, "-m", "fasthebb_cli")
TIMES = ("seconds", "images_per_second", "finished")


def start(
    out: Path, save_seconds: float, *arguments: str, command: Sequence[str] = FASTHEBB
) -> "subprocess.Popen[str]":
    """`fasthebb train` on SMALL, by a process of its own (or a `command` that starts several)."""
    environment = os.environ | {"FASTHEBB_SAVE_SECONDS": str(save_seconds), "OMP_NUM_THREADS": "1"}
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
