"""`fasthebb data info`: its counts, mean and deviation, and its picture."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.images import class_folders, save
from tests.prepare.conftest import Data


def info_of_photos(data: Data, tmp_path: Path) -> str:
    """Its output for the folder `photos` at 8 x 8."""
    given = ["info", "dataset=image_folder", f"dataset.root={tmp_path / 'photos'}", "dataset.size=8"]
    code, out, err = data(*given, f"out={tmp_path / 'samples.png'}")
    assert code == 0, err
    return out


def test_counts_statistics_and_samples(data: Data, tmp_path: Path) -> None:
    class_folders(tmp_path / "photos/train", {"cat": 10, "dog": 5})
    class_folders(tmp_path / "photos/test", {"cat": 2, "dog": 3}, first=20)
    given = ["info", "dataset=image_folder", f"dataset.root={tmp_path / 'photos'}", "dataset.size=32"]
    code, out, err = data(*given, f"out={tmp_path / 'there/samples.png'}")
    assert code == 0, err
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("cat", "dog", "all"))}
    assert rows == {"cat": ["8", "2", "2"], "dog": ["4", "1", "3"], "all": ["12", "3", "5"]}
    sheet = np.asarray(Image.open(tmp_path / "there/samples.png"))
    assert sheet.shape == (2 * (32 + 4 + 14) + 4, 4 + 10 * 36, 3)
    filled = [(sheet[14 : 14 + 32, 4 + 36 * k : 36 * (k + 1)] != 255).any() for k in range(10)]
    assert filled == [True] * 8 + [False] * 2


def test_mean_and_deviation_are_those_of_the_training_images(data: Data, tmp_path: Path) -> None:
    for k, value in enumerate((0, 51, 102)):  # a fifth of the scale apart
        path = save(tmp_path / f"photos/{k}.png", k)
        Image.new("RGB", (8, 8), (value, 0, 255)).save(path)
    out = info_of_photos(data, tmp_path)
    assert "mean (0.2000, 0.0000, 1.0000), deviation (0.1633, 0.0039, 0.0039) of all training images" in out
    assert "(no label)" in out
    assert "samples in" in out


def test_it_says_what_is_wrong(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = data("info", "dataset=image_folder", "dataset.root=gone")
    assert code == 2
    assert "there is no folder" in err
    assert not list(tmp_path.iterdir())


def test_only_a_file_is_replaced(data: Data, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    code, _, err = data("info", "dataset=digits", f"out={tmp_path / 'pipe.png'}")
    assert (code, err.count("\n")) == (1, 1)
    assert "it is there and not a file" in err
    assert (tmp_path / "pipe.png").is_fifo()


@pytest.mark.parametrize("name", ["x.jpg", "folder.png", "folder"])
def test_a_name_that_is_no_pictures_is_refused_at_once(data: Data, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.png").mkdir()
    code, out, err = data("info", "dataset=digits", f"out={tmp_path / name}")
    assert (code, out) == (2, "")
    assert f"out={tmp_path / name} must be the name of a picture that ends in .png" in err


def test_classes_are_named_as_their_folders_are(data: Data, tmp_path: Path) -> None:
    class_folders(tmp_path / "photos/train", {"[bold]x": 2, "a\nb\x1b": 2})
    class_folders(tmp_path / "photos/test", {"[bold]x": 1, "a\nb\x1b": 1})
    out = info_of_photos(data, tmp_path)
    assert "\n[bold]x " in out
    assert "\na\\nb\\x1b " in out
    assert "samples of 2 classes in" in out


def test_one_image_of_each_class_is_enough_beside_a_test_set(data: Data, tmp_path: Path) -> None:
    class_folders(tmp_path / "photos/train", {"a": 1, "b": 1})
    class_folders(tmp_path / "photos/test", {"a": 1})
    out = info_of_photos(data, tmp_path)
    assert ["all", "1", "1", "1"] in [line.split() for line in out.splitlines()]
