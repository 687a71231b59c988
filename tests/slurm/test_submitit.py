"""Sweeps whose cells are jobs of submitit's: local ones, which need no SLURM, and those of SLURM."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import SMALL
from tests.disturbed import FASTHEBB, outcome, undisturbed
from tests.slurm.conftest import wait_for

LONG = ("pretrain.epochs=15", "finetune.epochs=2")
slurm = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


def sweep(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*FASTHEBB, "train", "-m", *SMALL, "label_fraction=0.2", "out=runs", *arguments],
        cwd=folder,
        env=environment or os.environ | {"FASTHEBB_SAVE_SECONDS": "1000", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def text_of(folder: Path, pattern: str) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob(pattern)))


def holder(folder: Path) -> int:
    """The process that works on a stage now."""
    (found,) = set(re.findall(r"process (\d+)", text_of(folder, "runs/.locks/*")))
    return int(found)


@pytest.mark.slow
def test_a_local_job_told_to_stop_starts_again_in_the_same_directory(tmp_path: Path) -> None:
    launcher = sweep(tmp_path, "hydra/launcher=local", "seed=0", *LONG)

    def log() -> str:
        return text_of(tmp_path, "runs/.jobs/*/*_log.out")

    wait_for(lambda: text_of(tmp_path, "runs/*/metrics.jsonl"), 60, log)
    os.kill(holder(tmp_path), signal.SIGUSR2)
    text = launcher.communicate(timeout=120)[0]
    assert launcher.returncode == 0, text + log()
    assert log().count("Starting with JobEnvironment") == 2
    assert re.search(r"stopped and saved at epoch \d+", log())
    assert re.search(r"resumed at epoch \d+", log())
    assert outcome(tmp_path / "runs") == undisturbed(tmp_path / "alone", *LONG)


@pytest.mark.slow
def test_a_local_job_that_dies_is_named_in_one_line(tmp_path: Path) -> None:
    launcher = sweep(tmp_path, "hydra/launcher=local", "seed=0", *LONG)
    wait_for(lambda: text_of(tmp_path, "runs/*/metrics.jsonl"), 60, lambda: "")
    os.kill(holder(tmp_path), signal.SIGKILL)
    text = launcher.communicate(timeout=120)[0]
    assert launcher.returncode == 1
    assert re.fullmatch(r"error: job \d+ ended without a result; see \S+_log.out. The others go on; .*\n", text)
    assert Path(re.findall(r"see (\S+_log.out)", text)[0]).exists()
