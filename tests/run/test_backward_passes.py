"""`backward_passes` in results.json: the images that went through a backward pass, summed over epochs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fasthebb_cli.compute.signals import STOPPED
from tests.conftest import SMALL, Ran
from tests.disturbed import undisturbed
from tests.run.test_resume import ran, stop_at

COUNTS = {  # words of a run on 200 labels -> its stages' counts
    "stages=[pretrain,finetune,evaluate]": {"pretrain": 0, "finetune": 400, "evaluate": 0},
    "rule=vae stages=[pretrain]": {"pretrain": 2000},  # all 1,000 images, in 2 epochs
    "rule=random stages=[pretrain]": {"pretrain": 0},
    "rule=none finetune.classifier_epochs=3 stages=[finetune]": {"finetune": 1000},
    "finetune=hebbian stages=[pretrain,finetune]": {"pretrain": 0, "finetune": 0},
    "finetune.by_rule=[conv1] stages=[pretrain,finetune]": {"pretrain": 0, "finetune": 400},
    # the heads of 2 layers take 500 steps of at most 64 images: 125 epochs of 200 images
    "rule=none stages=[probe] probe.layers=[conv1,conv2] probe.epochs=1": {"probe": 2 * 125 * 200},
    "rule=none stages=[probe] probe.methods=[hebbian]": {"probe": 0},
}


@pytest.mark.slow
@pytest.mark.parametrize("words", COUNTS)
def test_each_kind_of_stage_counts_its_images(command: Callable[..., Ran], words: str) -> None:
    done = command("train", *words.split(), "label_fraction=0.2")
    assert done.code == 0, done.err
    assert {stage: done.results(stage)["backward_passes"] for stage in COUNTS[words]} == COUNTS[words]


@pytest.mark.slow
def test_closed_form_makes_none(command: Callable[..., Ran]) -> None:
    words = [word for word in SMALL if not word.startswith("finetune")]
    done = command("train", *words, "finetune=closed_form", "finetune.components=20", "label_fraction=0.2", small=False)
    assert done.code == 0, done.err
    assert done.results("finetune")["backward_passes"] == 0


@pytest.mark.slow
def test_epochs_that_patience_saves_do_not_count(command: Callable[..., Ran]) -> None:
    early = ("finetune.select=best", "finetune.patience=1", "finetune.epochs=60", "finetune.lr=0.0001")
    done = command("train", "rule=none", "stages=[finetune]", *early, "label_fraction=0.05")
    assert done.code == 0, done.err
    results = done.results("finetune")
    assert results["epochs"] < 60
    assert results["backward_passes"] == 50 * results["epochs"]


@pytest.mark.slow
def test_steps_before_and_after_a_stop_count_once(tmp_path: Path) -> None:
    words = ("stages=[finetune]", "rule=none", "finetune.epochs=2")
    with stop_at(6):  # four steps make an epoch, whose end is a decision too
        assert ran(tmp_path, *words) == STOPPED
    assert ran(tmp_path, *words) == 0
    (path,) = tmp_path.glob("*/results.json")
    assert json.loads(path.read_text())["backward_passes"] == 400


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_two_processes_count_all_images_once() -> None:
    results = undisturbed("pretrain.epochs=1", "finetune.epochs=1", size=2)
    counts = {name: found["backward_passes"] for name, found in results.items() if isinstance(found, dict)}
    assert sorted(counts.values()) == [0, 0, 200]
