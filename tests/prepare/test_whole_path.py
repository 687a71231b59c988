"""From image files through a packed set to a fine-tuned conv10 at 210 x 210, and how fast packed images are read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from fasthebb_cli import cli
from tests.conftest import Ran
from tests.data.images import photographs
from tests.prepare.conftest import Data

FASTER = 5  # reading packed images against decoding JPEG files on the same cores, at least
WAITING = 0.05  # the share of a step's time, at most


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
    assert data("prepare", "dataset=imagenet", f"dataset.root={imagenet}", f"out={tmp_path / 'packed'}")[0] == 0
    results = {}
    for name, root in (("files", imagenet), ("packed", tmp_path / "packed")):
        GlobalHydra.instance().clear()
        words = ["dataset=imagenet", f"dataset.root={root}", "dataset.in_memory=false", "batch_size=16", "repeats=3"]
        assert cli.run(["bench", "data", *words, "gpu=cpu", f"json={tmp_path / name}.json"]) == 0
        results[name] = json.loads((tmp_path / f"{name}.json").read_text())["workers"]
    assert list(results["packed"]) == list(results["files"])
    files, packed = results["files"]["0"], results["packed"]["0"]
    assert packed["images_per_second"] >= FASTER * files["images_per_second"]
    assert packed["waiting"] <= WAITING
