"""From image files to a fine-tuned conv10 at 210 x 210, through a packed set; and how fast that is read."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from fasthebb_cli import cli
from fasthebb_cli.data.dataset import load_dataset
from fasthebb_cli.settings.config import DatasetConfig
from tests.conftest import Ran
from tests.data.images import photographs
from tests.prepare.conftest import Data

FASTER = 5  # packed images are read so many times as fast as JPEG files are decoded, on the same cores
WAITING = 0.05  # of a step's time at most
BATCH = 16


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    root = tmp_path / "imagenet"
    photographs(root, {"train/n01": 24, "train/n02": 24, "val/n01": 2, "val/n02": 2})
    return root


@pytest.mark.slow
def test_prepare_pretrain_and_finetune(imagenet: Path, command: Callable[..., Ran], data: Data, tmp_path: Path) -> None:
    (imagenet / "train/n01/000.jpg").write_bytes(b"")
    given = ("prepare", "dataset=imagenet", f"dataset.root={imagenet}", f"out={tmp_path / 'packed'}", "workers=2")
    code, out, err = data(*given, "dataset.on_bad_image=skip")
    assert code == 0, err
    assert "52 images 210 x 210, 132 kB an image: 6.88 MB" in out
    assert "packed 51 images, 6.75 MB" in out
    shared = (
        *("dataset=imagenet", f"dataset.root={tmp_path / 'packed'}", "dataset.in_memory=false", "model.width=0.125"),
        *("gpu=cpu", "gpu.workers=1", "pretrain.epochs=1", "pretrain.batch_size=8"),
        *("finetune.epochs=1", "finetune.batch_size=8"),
    )
    ran = command("pretrain", *shared, small=False)
    assert ran.code == 0, ran.err
    assert "000.jpg: can't be read as an image" in ran.out
    ran = command("finetune", *shared, small=False)
    assert ran.code == 0, ran.err
    assert ran.results("finetune")["labels_train"] == 44  # 1,200,000 of 1,281,167 of 47


@pytest.mark.slow
def test_packed_images_are_read_fast_enough(imagenet: Path, data: Data, tmp_path: Path) -> None:
    """The least processor time of several tries: what else the machine does is not in it."""
    assert data("prepare", "dataset=imagenet", f"dataset.root={imagenet}", f"out={tmp_path / 'packed'}")[0] == 0
    words = (f"dataset.root={tmp_path / 'packed'}", "dataset.in_memory=false", f"batch_size={BATCH}", "repeats=1")
    GlobalHydra.instance().clear()
    assert cli.run(["bench", "data", "dataset=imagenet", *words, "gpu=cpu", f"json={tmp_path / 'data.json'}"]) == 0
    images_per_second = json.loads((tmp_path / "data.json").read_text())["step_images_per_second"]

    def seconds(root: Path) -> float:
        """To read a batch."""
        config = DatasetConfig(name="imagenet", root=str(root), size=210, in_memory=False)
        source, tries = load_dataset(config, 0).source, []
        for _ in range(5):
            began = time.process_time()
            assert source.read(torch.arange(BATCH)).shape == (BATCH, 3, 210, 210)
            tries.append(time.process_time() - began)
        return min(tries)

    packed = seconds(tmp_path / "packed")
    assert packed <= seconds(imagenet) / FASTER
    assert packed <= WAITING * BATCH / images_per_second
