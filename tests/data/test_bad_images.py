"""Images that can't be read: an error names them, or they are left out as if they were not there."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from fasthebb_cli.console.formats import make_console
from fasthebb_cli.console.view import View
from fasthebb_cli.data import source
from fasthebb_cli.data.dataset import Dataset, load_dataset
from fasthebb_cli.data.loading import batches
from fasthebb_cli.errors import InputError
from fasthebb_cli.run.dataset import open_dataset
from fasthebb_cli.settings.config import DatasetConfig
from fasthebb_cli.settings.load import with_defaults
from tests.conftest import Ran
from tests.data.images import class_folders, save
from tests.many import together


def load(root: Path, **settings: Any) -> Dataset:
    return load_dataset(with_defaults(DatasetConfig, name="image_folder", root=str(root), size=8, **settings), 0)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Two classes for training and testing. In three of the four folders one file is damaged, each in another way."""
    root = tmp_path / "damaged"
    class_folders(root / "train", {"a": 12, "b": 12})
    class_folders(root / "test", {"a": 3, "b": 3}, first=40)
    (root / "train/a/003.png").write_bytes(b"")
    whole = (root / "train/b/000.png").read_bytes()
    (root / "train/b/000.png").write_bytes(whole[: len(whole) // 2])
    (root / "test/b/001.png").write_bytes(b"this is no image")
    return root


@pytest.fixture
def mended(damaged: Path, tmp_path: Path) -> Path:
    """The same folder without the damaged files."""
    root = tmp_path / "mended"
    shutil.copytree(damaged, root)
    for name in ("train/a/003.png", "train/b/000.png", "test/b/001.png"):
        (root / name).unlink()
    return root


@pytest.mark.parametrize("in_memory", [None, False])
def test_skipping_is_as_if_they_were_not_there(damaged: Path, mended: Path, in_memory: bool | None) -> None:
    expected = load(mended, in_memory=in_memory)
    found = load(damaged, in_memory=in_memory, on_bad_image="skip")
    assert found.digest == expected.digest
    assert torch.equal(found.labels, expected.labels)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(found, part), getattr(expected, part))
    everything = torch.arange(len(expected.labels))
    assert torch.equal(found.source.read(everything), expected.source.read(everything))
    assert [line.split(": ")[0] for line in found.left_out] == [
        str(damaged / name) for name in ("train/a/003.png", "train/b/000.png", "test/b/001.png")
    ]
    assert expected.left_out == ()


@pytest.mark.slow
def test_of_several_processes_the_first_looks_for_all(damaged: Path) -> None:
    (decoded, first), (none, second) = together("tests.data.test_bad_images:looked_at", 2, damaged)
    assert (decoded, none) == (30, 0)
    assert first == second == load(damaged, in_memory=False, on_bad_image="skip").digest


def looked_at(damaged: Path) -> tuple[int, str]:
    """Number of images that this process decodes to open the data set, and the digest."""
    decoded = 0
    decode = source.decode

    def counted(*arguments: Any) -> Any:
        nonlocal decoded
        decoded += 1
        return decode(*arguments)

    patch.object(source, "decode", counted).start()
    config = with_defaults(
        DatasetConfig,
        name="image_folder", root=str(damaged), size=8, in_memory=False, on_bad_image="skip",
        download=True,
    )  # fmt: skip
    dataset = open_dataset(config, 0, View(make_console()))
    return decoded, dataset.digest


def test_where_nothing_is_damaged_it_changes_nothing(mended: Path) -> None:
    assert load(mended, on_bad_image="skip").digest == load(mended).digest


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_batches(damaged: Path) -> None:
    dataset = load(damaged, in_memory=False, on_bad_image="skip")

    def epoch(workers: int) -> list[torch.Tensor]:
        stream = batches(
            dataset.source, dataset.train, batch_size=4, device=torch.device("cpu"), order_seed=3, workers=workers
        )
        return [images for images, _ in stream]

    for here, there in zip(epoch(0), epoch(2), strict=True):
        assert torch.equal(here, there)


@pytest.mark.parametrize("in_memory", [None, False])
def test_a_link_to_nowhere_is_such_an_image(damaged: Path, in_memory: bool | None) -> None:
    before = load(damaged, in_memory=in_memory, on_bad_image="skip")
    link = damaged / "train/a/x.png"
    link.symlink_to("gone.png")
    found = load(damaged, in_memory=in_memory, on_bad_image="skip", download=True)  # other settings: listed again
    assert found.digest == before.digest
    assert f"{link}: can't be read as an image: No such file or directory" in found.left_out


@pytest.mark.parametrize("in_memory", [None, False])
def test_a_class_is_not_lost_in_silence(damaged: Path, in_memory: bool | None) -> None:
    for path in (damaged / "train/b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"class b: not one of its training images can be read"):
        load(damaged, in_memory=in_memory, on_bad_image="skip")


def test_not_one_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"not one of the training images can be read"):
        load(tmp_path, on_bad_image="skip")


def test_without_it_the_first_is_named(damaged: Path) -> None:
    with pytest.raises(InputError, match=r"train/a/003.png: can't be read as an image"):
        load(damaged)


@pytest.mark.slow
def test_a_run_names_them_and_counts_them(command: Callable[..., Ran], tmp_path: Path) -> None:
    for i in range(14):
        save(tmp_path / f"photos/{i:02}.png", i)
    for i in range(12):
        (tmp_path / f"photos/{i:02}.png").write_bytes(b"")
    words = ("dataset=image_folder", f"dataset.root={tmp_path / 'photos'}", "dataset.size=32", "pretrain.batch_size=2")
    ran = command("pretrain", *words)
    assert ran.code == 2
    assert "00.png: can't be read as an image" in ran.err
    ran = command("pretrain", *words, "dataset.on_bad_image=skip")
    assert ran.code == 0, ran.err
    assert ran.out.index("decodes 14 images to find those") < ran.out.index("00.png: can't be read as an image")
    assert ran.out.count("can't be read as an image") == 10
    assert "12 images can't be read and are left out" in ran.out
    for i in range(12):
        os.remove(tmp_path / f"photos/{i:02}.png")
    assert "reused from" in command("pretrain", *words).out, "another fingerprint"
