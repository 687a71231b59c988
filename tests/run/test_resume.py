"""Killed at any moment and started again, a run ends in the same bits, with every epoch once in its log."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import SMALL

TIMES = ("seconds", "images_per_second", "finished")


def start(out: Path, save_seconds: float, *arguments: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"FASTHEBB_SAVE_SECONDS": str(save_seconds), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "fasthebb_cli", "train", *SMALL, "label_fraction=0.2", f"out={out}", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


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


def wait_for_work(process: "subprocess.Popen[str]", out: Path) -> None:
    """Until the process has taken a checkpoint, or is done."""
    began = time.time()
    while process.poll() is None:
        if any(path.stat().st_mtime > began for path in out.glob("*/checkpoint.pt")):
            return
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("rule=swta", "finetune.select=best", "finetune.augment=light"),
        ("rule=vae",),
        ("rule=hpca_adaptive", "pretrain.layer_by_layer=true"),
        ("rule=hpca_adaptive", "finetune.by_rule=[conv2,fc5]", "finetune.hidden=7"),
        ("finetune=hebbian", "finetune.augment=shift", "finetune.select=best", "finetune.patience=2"),
    ],
)
def test_kill_9_at_random_moments_loses_nothing(tmp_path: Path, settings: tuple[str, ...]) -> None:
    settings = (*settings, "pretrain.epochs=5", "finetune.epochs=10")
    undisturbed = start(tmp_path / "once", 0.0, *settings)
    text = undisturbed.communicate()[0]
    assert undisturbed.returncode == 0, text
    moments = random.Random(0)
    kills = 0
    while True:
        process = start(tmp_path / "killed", 0.0, *settings)
        if kills < 6:  # then it may finish
            wait_for_work(process, tmp_path / "killed")
            time.sleep(0.6 * moments.random())
            process.kill()
        text = process.communicate()[0]
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, text
        kills += 1
    assert kills >= 2
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "once")


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    settings = ("pretrain.epochs=200", "stages=[pretrain]")
    process = start(tmp_path, 1000, *settings)
    assert process.stdout is not None
    directory = None
    for _ in range(600):
        directory = next(iter(tmp_path.glob("*/metrics.jsonl")), None)
        if directory is not None and directory.stat().st_size > 0:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    text = process.communicate()[0]
    assert process.returncode == 130, text
    assert "the same command goes on" in text
    assert "Traceback" not in text
    assert list(tmp_path.glob("*/checkpoint.pt"))


@pytest.mark.slow
def test_a_damaged_or_foreign_checkpoint_is_named(tmp_path: Path) -> None:
    process = start(tmp_path, 0.0, "pretrain.epochs=300", "stages=[pretrain]")
    while not list(tmp_path.glob("*/checkpoint.pt")):
        time.sleep(0.1)
        assert process.poll() is None, process.communicate()[0]
    process.kill()
    process.communicate()
    (checkpoint,) = tmp_path.glob("*/checkpoint.pt")
    whole = checkpoint.read_bytes()
    for damage, expected in ((whole[: len(whole) // 2], "can't be read"), (b"", "can't be read")):
        checkpoint.write_bytes(damage)
        again = start(tmp_path, 0.0, "pretrain.epochs=300", "stages=[pretrain]")
        text = again.communicate()[0]
        assert again.returncode == 2, text
        assert expected in text
        assert "force=true" in text
        assert checkpoint.read_bytes() == damage
