"""Killed at any moment and started again, a run ends in the same bits, with every epoch once in its log."""

import os
import signal
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fasthebb_cli.stages.scores import add_batch
from tests.conftest import Ran
from tests.data.images import class_folders
from tests.disturbed import FASTHEBB, TWO, Started, kill_at_random_moments, outcome, start, undisturbed

# Stages of several hundred steps, so that a run that saves after each can be killed many times in every one
STEPS = (
    "stages=[pretrain,finetune,probe,evaluate]",
    "pretrain.batch_size=8",
    "pretrain.epochs=4",
    "finetune.batch_size=2",
    "finetune.epochs=5",
    "evaluate.batch_size=1",
    "probe.methods=[knn]",
)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("size", [1, 2])
def test_kill_9_at_50_random_moments_over_all_stages_loses_nothing(tmp_path: Path, size: int) -> None:
    kills = {"start": 7, "pretrain": 22, "finetune": 22, "probe": 9, "evaluate": 12}
    hit = kill_at_random_moments(tmp_path / "killed", kills, *STEPS, size=size)
    assert hit.total() >= 50  # the last of a stage may come too late for it, most of all of the probe's
    assert hit.keys() == kills.keys()
    command = TWO if size == 2 else FASTHEBB
    assert outcome(tmp_path / "killed") == undisturbed(tmp_path / "once", *STEPS, command=command)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("rule=swta", "finetune.select=best", "finetune.augment=light"),
        ("rule=vae",),
        ("rule=hpca_adaptive", "pretrain.layer_by_layer=true"),
        ("rule=hpca_adaptive", "finetune.by_rule=[conv2,fc5]", "finetune.hidden=7"),
        ("finetune=hebbian", "finetune.augment=shift", "finetune.select=best", "finetune.patience=2"),
    ],
)
def test_so_with_other_rules(tmp_path: Path, settings: tuple[str, ...]) -> None:
    settings = (*settings, "pretrain.epochs=5", "finetune.epochs=10")
    hit = kill_at_random_moments(tmp_path / "killed", {"pretrain": 3, "finetune": 3}, *settings)
    assert hit.total() >= 2
    assert outcome(tmp_path / "killed") == undisturbed(tmp_path / "once", *settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGUSR1,
        *(pytest.param(other, marks=pytest.mark.slow) for other in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)),
    ],
)
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    settings = ("pretrain.epochs=200", "stages=[pretrain]")
    process = start(tmp_path, 1000, *settings)
    assert process.stdout is not None
    directory = None
    for _ in range(600):
        directory = next(iter(tmp_path.glob("*/metrics.jsonl")), None)
        if directory is not None and directory.stat().st_size > 0:
            break
        time.sleep(0.1)
    process.send_signal(number)
    text = process.communicate(timeout=30)[0]
    assert process.returncode == 130, text
    assert "the same command goes on" in text
    assert "Traceback" not in text
    assert list(tmp_path.glob("*/checkpoint.pt"))


def test_a_stop_while_validation_images_are_looked_at_saves_and_goes_on_to_the_same_bits(
    command: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("rule=none", "finetune.select=best", "finetune.epochs=3", "label_fraction=0.2", "stages=[finetune]")
    looked_at = 0

    def stop(*arguments: Any) -> Any:
        nonlocal looked_at
        looked_at += 1
        if looked_at == 7:  # in the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return add_batch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(import_module("fasthebb_cli.stages.scores"), "add_batch", stop)
        ran = command("train", *settings)
    assert ran.code == 130, ran.err
    assert "stopped and saved at epoch 2, its validation of finetune" in ran.err
    assert looked_at == 7
    assert command("train", *settings).code == 0
    once = command("train", *settings, f"out={tmp_path / 'once'}")
    assert once.code == 0
    assert outcome(tmp_path / "runs") == outcome(tmp_path / "once")


def decoding(tmp_path: Path, workers: int) -> Started:
    """A run that has saved, with processes that decode."""
    if not (tmp_path / "photos").exists():
        class_folders(tmp_path / "photos/train", {"cats": 40, "dogs": 40})
        class_folders(tmp_path / "photos/test", {"cats": 4, "dogs": 4})
    began = time.time()
    process = Started(
        tmp_path / "runs",
        "dataset=image_folder",
        f"dataset.root={tmp_path / 'photos'}",
        "dataset.size=32",
        "dataset.in_memory=false",
        f"gpu.workers={workers}",
        "pretrain.batch_size=4",
        "pretrain.epochs=50",
        "stages=[pretrain]",
    )
    while not any(path.stat().st_mtime > began for path in tmp_path.glob("runs/*/checkpoint.pt")):
        assert process.poll() is None, process.text()
        time.sleep(0.05)
    return process


@pytest.mark.slow
def test_a_signal_to_every_process_as_slurm_sends_it_spares_those_that_decode(tmp_path: Path) -> None:
    for number in (signal.SIGUSR1, signal.SIGTERM):
        process = decoding(tmp_path, workers=2)
        process.send(number)
        text = process.text()
        assert process.poll() == 130, text
        assert "stopped and saved at epoch" in text
        assert "Traceback" not in text


@pytest.mark.slow
def test_processes_that_decode_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    process = decoding(tmp_path, workers=1)
    assert len(process.numbers()) >= 3, "the run, its fork server and the one that decodes"
    process.process.kill()
    end = time.monotonic() + 10
    while process.numbers() and time.monotonic() < end:
        time.sleep(0.1)
    left = process.numbers()
    process.kill()
    text = process.text()
    assert not left, text


@pytest.mark.slow
def test_a_signal_outside_of_a_stage_ends_the_run_at_once(tmp_path: Path) -> None:
    kills = 0
    for tenths in range(0, 60, 4):
        process = start(tmp_path / "stopped", 1000, "pretrain.epochs=1", "finetune.epochs=1")
        time.sleep(tenths / 10)
        process.send_signal(signal.SIGUSR1)
        text = process.communicate(timeout=60)[0]  # one that was done before has to end by itself
        assert "Traceback" not in text
        assert process.returncode in (0, 130, -signal.SIGUSR1), text  # the last before there is any Python to ask
        kills += process.returncode != 0
    assert kills > 5
    short = ("pretrain.epochs=1", "finetune.epochs=1")
    assert undisturbed(tmp_path / "stopped", *short) == undisturbed(tmp_path / "once", *short)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    settings = ("pretrain.epochs=20", "stages=[pretrain]")
    process = start(tmp_path / "damaged", 0.0, *settings)
    while not list(tmp_path.glob("damaged/*/checkpoint.previous.pt")):
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()[0]
    process.kill()
    process.communicate()
    (checkpoint,) = tmp_path.glob("damaged/*/checkpoint.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    again = start(tmp_path / "damaged", 1000, *settings)
    text = again.communicate(timeout=200)[0]
    assert again.returncode == 0, text
    assert f"{checkpoint} is damaged" in text
    assert "resumed at" in text
    assert outcome(tmp_path / "damaged") == undisturbed(tmp_path / "once", *settings)
