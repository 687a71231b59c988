"""Classes of foreign weights are matched by name, whatever their order and number."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fasthebb.model_file import read_card
from tests.conftest import SMALL, Ran

pytestmark = [pytest.mark.slow]

Command = Callable[..., Ran]
COLOURS = {"cat": (200, 30, 30), "dog": (30, 200, 30), "owl": (30, 30, 200)}
SHARED = [word for word in SMALL if not word.startswith(("dataset=", "finetune.epochs="))]


def folder(root: Path, names: dict[str, str], images: int = 12) -> Path:
    """Folders of images of one colour each: name of the folder -> which colour."""
    for part in ("train", "test"):
        for name, colour in names.items():
            (root / part / name).mkdir(parents=True)
            for k in range(images):
                shade = tuple(value + 2 * k for value in COLOURS[colour])
                Image.new("RGB", (8, 8), shade).save(root / part / name / f"{k}.png")
    return root


@pytest.fixture
def taught(command: Command, tmp_path: Path) -> Path:
    root = folder(tmp_path / "photos", {name: name for name in COLOURS})
    words = ["dataset=image_folder", f"dataset.root={root}", "rule=none", "label_fraction=1"]
    ran = command("train", *SHARED, *words, "model.norm=batch", "finetune.epochs=40", "finetune.lr=0.02", small=False)
    assert ran.code == 0, ran.err
    (directory,) = ran.directories("finetune")
    assert read_card(directory).classes == ["cat", "dog", "owl"]
    results = ran.results("evaluate")
    assert (results["top1"], results["balanced_top1"], results["imbalance"]) == (1.0, 1.0, 1.0)
    assert results["top5"] is None, "of three classes one of five is always right"
    return directory


def measured(command: Command, taught: Path, root: Path, verb: str = "evaluate", *more: str) -> Ran:
    words = ["dataset=image_folder", f"dataset.root={root}", "rule=none", f"init_from={taught}", "label_fraction=1"]
    return command(verb, *SHARED, *words, "model.norm=batch", *more, small=False)


def test_a_classifier_is_measured_by_the_names_of_its_classes(command: Command, taught: Path, tmp_path: Path) -> None:
    some = folder(tmp_path / "some", {"owl": "owl", "cat": "cat"})
    ran = measured(command, taught, some)
    assert ran.code == 0, ran.err
    everything = [json.loads((path / "results.json").read_text()) for path in ran.directories("evaluate")]
    found = [item for item in everything if item["samples"] == 24]
    assert [item["top1"] for item in found] == [1.0]
    assert found[0]["classes"] == ["cat", "dog", "owl"]
    other = folder(tmp_path / "other", {"cat": "cat", "dog": "dog", "Owl": "owl"})
    for more in ([], ["stages=[probe,evaluate]"], ["stages=[pretrain,evaluate]", "rule=hpca"]):
        ran = measured(command, taught, other, "evaluate", *more)
        assert ran.code == 2, more
        assert ran.err.count("\n") == 1
        assert "does not know 1 class of dataset image_folder: Owl; it knows: cat, dog, owl" in ran.err


def test_a_classifier_of_other_classes_is_not_built_on(command: Command, taught: Path, tmp_path: Path) -> None:
    """They are as many, so that the shapes would fit."""
    other = folder(tmp_path / "other", {"ant": "owl", "bee": "cat", "cow": "dog"})
    ran = measured(command, taught, other, "finetune", "finetune.epochs=1")
    assert ran.code == 0, ran.err
    assert ", but not classifier." in ran.out
    same = folder(tmp_path / "same", {name: name for name in COLOURS}, images=11)
    ran = measured(command, taught, same, "finetune", "finetune.epochs=1")
    assert ran.code == 0, ran.err
    assert "but not" not in ran.out


def test_what_no_label_has_taught_is_not_measured(command: Command) -> None:
    ran = command("pretrain", "pretrain.epochs=1")
    (learnt,) = ran.directories("pretrain")
    weights = f"init_from={learnt}"
    for words in (["evaluate", weights], ["train", "stages=[pretrain,evaluate]"], ["evaluate", weights, "--dry-run"]):
        ran = command(*words, "pretrain.epochs=1")
        assert ran.code == 2, words
        assert ran.err.count("\n") == 1
        assert "evaluate: no label has taught this classifier" in ran.err


def test_a_folder_of_test_images_alone_is_measured_whole(command: Command, taught: Path, tmp_path: Path) -> None:
    root = folder(tmp_path / "foreign", {"owl": "owl", "cat": "cat"})
    (root / "train").rename(tmp_path / "elsewhere")
    ran = measured(command, taught, root)
    assert ran.code == 0, ran.err
    assert "top-1 100.0 % of 24 test images" in ran.out
    lines = [f"test/{name}/{k}.png,{name},test" for name in ("cat", "owl") for k in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *lines]))
    ran = measured(command, taught, root, "evaluate", f"dataset.labels={tmp_path / 'labels.csv'}")
    assert (ran.code, "finished before, reused" in ran.out) == (0, True), ran.err
    for verb in ("finetune", "probe"):
        ran = measured(command, taught, root, verb)
        assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
        assert "has no training images; it serves only to measure a trained network" in ran.err


def test_labels_that_weights_have_learnt_from_are_told(command: Command, taught: Path, tmp_path: Path) -> None:
    ran = measured(command, taught, folder(tmp_path / "more", dict.fromkeys(COLOURS, "cat"), 3), "finetune")
    assert ran.code == 0, ran.err
    assert re.search(r"which have learnt from \d\d labels: tables count them, too", re.sub(r"\s+", " ", ran.out))
