"""From image files to a fine-tuned conv10 at 210 x 210, through a packed set, which is read without decoding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fasthebb_cli.data.dataset import load_dataset
from fasthebb_cli.data.source import decode
from tests.conftest import Ran, loaded
from tests.data.images import photographs
from tests.prepare.conftest import Data


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
        *("finetune=backprop", "finetune.epochs=1", "finetune.batch_size=8"),
    )
    ran = command("pretrain", *shared, small=False)
    assert ran.code == 0, ran.err
    assert "000.jpg: can't be read as an image" in ran.out
    ran = command("finetune", *shared, small=False)
    assert ran.code == 0, ran.err
    assert ran.results("finetune")["labels_train"] == 44  # 1,200,000 of 1,281,167 of 47


@pytest.mark.slow
def test_packed_images_are_read_without_decoding(
    imagenet: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fasthebb bench data` measures what that saves."""
    decoded: list[str] = []

    def counted(path: str, *arguments: Any) -> Any:
        decoded.append(path)
        return decode(path, *arguments)

    assert data("prepare", "dataset=imagenet", f"dataset.root={imagenet}", f"out={tmp_path / 'packed'}")[0] == 0
    monkeypatch.setattr("fasthebb_cli.data.source.decode", counted)

    def read(root: Path) -> torch.Tensor:
        config = loaded("dataset=imagenet", f"dataset.root={root}", "dataset.in_memory=false").dataset
        return load_dataset(config, 0).source.read(torch.arange(16))

    packed = read(tmp_path / "packed")
    assert decoded == []
    assert torch.equal(packed, read(imagenet))
    assert len(decoded) == 16
