"""A model for all tests of `use`, trained on a folder of digits, so that its images are files, too."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from sklearn.datasets import load_digits

from fasthebb_cli import cli
from tests.conftest import SMALL

TRAIN, TEST = 300, 101  # so the last batch has one image


class Taught(NamedTuple):
    """Stage directories, and the folder with the images of each class that `evaluate` measured."""

    pretrain: Path
    finetune: Path
    evaluate: Path
    test: Path


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    torch.set_num_threads(1)
    top = tmp_path_factory.mktemp("taught")
    bunch = load_digits()
    for k in range(TRAIN + TEST):
        folder = top / "digits" / ("train" if k < TRAIN else "test") / f"digit {bunch.target[k]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((bunch.images[k] * (255 / 16)).round().astype("uint8")).save(folder / f"{k}.png")
    GlobalHydra.instance().clear()
    shared = [word for word in SMALL if not word.startswith(("dataset=", "finetune.epochs="))]
    data = ["dataset=image_folder", f"dataset.root={top / 'digits'}", "dataset.mirror=false"]
    code = cli.run(["train", *shared, *data, "finetune.epochs=5", "label_fraction=1", f"out={top / 'runs'}"])
    GlobalHydra.instance().clear()
    assert code == 0
    pretrain, finetune, evaluate = (
        next((top / "runs").glob(f"*-{stage}-*")) for stage in ("pretrain", "finetune", "evaluate")
    )
    return Taught(pretrain, finetune, evaluate, top / "digits" / "test")
