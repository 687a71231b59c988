"""Folders as people have them: every image is used as what it is, or refused or counted, and by every verb alike."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from fasthebb_cli.console.view import View
from fasthebb_cli.data.dataset import _collection, collection_of, load_dataset
from fasthebb_cli.data.source import Fit, decode
from fasthebb_cli.errors import InputError
from fasthebb_cli.run.dataset import alike, copies, open_dataset, untaught
from fasthebb_cli.settings.config import DatasetConfig
from fasthebb_cli.settings.load import with_defaults
from fasthebb_cli.use.images import find_images
from tests.data.images import class_folders, picture, save

EXIF = Image.Exif()
EXIF[0x0112] = 6
EXIF[0x010E] = "a description"


def config(root: Path, **more: object) -> DatasetConfig:
    _collection.cache_clear()
    return with_defaults(DatasetConfig, name="image_folder", root=str(root), size=8, **more)


def told(root: Path, **more: object) -> str:
    """What a run says of its images."""
    console = Console(record=True, width=500, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        open_dataset(config(root, **more), 0, View(console))
        return console.export_text()


@pytest.mark.parametrize(
    ("train", "test", "validation"),
    [("training", "testing", "validation"), ("Train", "Test", "VAL"), ("train", "test", "valid"), ("TRAIN", "dev", "")],
)
def test_folders_named_as_splits_are_splits(tmp_path: Path, train: str, test: str, validation: str) -> None:
    class_folders(tmp_path / train, {"a": 5, "b": 5})
    class_folders(tmp_path / test, {"a": 2, "b": 1}, first=20)
    if validation:
        class_folders(tmp_path / validation, {"a": 1, "b": 3}, first=30)
    dataset = load_dataset(config(tmp_path), 0)
    assert dataset.classes == ("a", "b")
    assert len(dataset.test) == 3
    assert (len(dataset.train), len(dataset.validation)) == ((10, 4) if validation else (8, 2))


def nested(root: Path, names: list[str]) -> None:
    for k, name in enumerate(names):
        save(root / name, k)


REFUSED: dict[str, tuple[list[str], str]] = {
    "two training folders": (["train/a/1.png", "Training/b/1.png"], "both are named as the split train"),
    "two validation folders": (
        ["train/a/1.png", "val/a/1.png", "valid/a/2.png"], "both are named as the split val"
    ),
    "no training folder": (["val/1.png", "test/2.png"], "has test but no folder train, and no class folders with"),
    "a folder beside splits": (["train/a/1.png", "test/a/1.png", "new/a/1.png"], "new: lies beside "),
    "a class named as a split": (["cat/1.png", "dog/1.png", "test/1.png"], "cat: lies beside "),
    "images beside splits": (["train/a/1.png", "test/a/1.png", "1.png"], "1.png: lies beside folders"),
    "images beside classes": (["a/1.png", "b/1.png", "1.png"], "take all images without labels: dataset.labels=none"),
    "images in a split": (["train/a/1.png", "test/a/1.png", "test/1.png"], "1.png: lies beside folders"),
    "splits of other names": (
        ["one/cat/1.png", "one/dog/1.png", "two/cat/2.png", "two/dog/2.png"],
        "one and two have the same subfolders (cat, dog), so they seem to be splits",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_left_out_in_silence_is_refused(tmp_path: Path, case: str) -> None:
    names, message = REFUSED[case]
    nested(tmp_path, names)
    with pytest.raises(InputError) as refused:
        load_dataset(config(tmp_path), 0)
    assert message in str(refused.value)


def test_days_and_years_below_classes_are_no_splits(tmp_path: Path) -> None:
    nested(tmp_path, [f"{name}/{day}/{k}.png" for name in ("a", "b") for day in ("2024-01", "2024-02") for k in (1, 2)])
    assert load_dataset(config(tmp_path), 0).classes == ("a", "b")


def test_all_images_without_labels(tmp_path: Path) -> None:
    nested(tmp_path, ["1.png", "2024/2.png", "2024/May/3.png", "cat/4.png"])
    dataset = load_dataset(config(tmp_path, labels="none"), 0)
    assert (dataset.classes, len(dataset.train), dataset.labels.tolist()) == ((), 4, [-1] * 4)


def test_every_named_format_is_read_and_the_others_are_counted(tmp_path: Path) -> None:
    shown = picture(1, (16, 16)).resize((64, 64))
    for name in (
        "a.jfif",
        "b.JPG",
        "c.png",
        "d.webp",
        "e.bmp",
        "f.gif",
        "g.tiff",
        "h.ppm",
        "i.pgm",
        "j.avif",
        "k.heic",
        "l.jpe",
        "m.dib",
        "n.pnm",
    ):
        kind = {"jfif": "JPEG", "heic": "HEIF"}.get(name[2:])
        (shown.convert("L") if name == "i.pgm" else shown).save(tmp_path / name, format=kind)
    for name in ("l.cr2", "m.CR2", "n.mp4", "o.txt", "Thumbs.db", "p.pcx", "q.jpg_large", ".r.png", "._s.png"):
        (tmp_path / name).write_bytes(b"?")
    dataset = load_dataset(config(tmp_path), 0)
    assert len(dataset.train) == 14
    pixels = dataset.source.read(torch.arange(14)).float()
    close = (pixels - pixels[2]).abs().mean((1, 2, 3))
    assert [int(k) for k in (close > 16).nonzero()] == [8], "all show the same, but the grey one"
    line = "files that are not read are left out: 2 .cr2, 1 .jpg_large, 1 .mp4, 1 .pcx, 1 hidden image"
    assert line in told(tmp_path)
    warned: list[str] = []
    assert len(find_images(tmp_path, warned.append)) == 14
    assert warned == [line]


def test_a_format_that_is_not_named_is_not_opened_whatever_its_name(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "dds.png", format="DDS")
    picture(1).save(tmp_path / "ico.png", format="ICO")
    for path in tmp_path.iterdir():
        with pytest.raises(InputError, match="can't be read as an image: cannot identify image file"):
            decode(str(path), Fit(8))
    picture(1).save(tmp_path / "webp.jpg", format="WEBP")
    assert decode(str(tmp_path / "webp.jpg"), Fit(8)).shape == (3, 8, 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "palette with one transparent colour"])
def test_what_is_transparent_is_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((90, 90, 90, 255), (0, 0, 8, 4))
    if mode.startswith("palette"):
        flat = Image.new("P", (8, 8), 1)
        flat.putpalette([90, 90, 90, 0, 0, 0])
        flat.paste(0, (0, 0, 8, 4))
        flat.save(tmp_path / "x.png", transparency=1)
    else:
        image.convert(mode).save(tmp_path / "x.png")
    found = decode(str(tmp_path / "x.png"), Fit(8))
    assert np.unique(found[:, 4:]).tolist() == [255]
    assert np.unique(found[:, :4]).tolist() == [90]


@pytest.mark.parametrize(("background", "expected"), [("black", [0]), ("#7f7f7f", [127]), ("white", [255])])
def test_the_background_is_a_setting(tmp_path: Path, background: str, expected: list[int]) -> None:
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "x.png")
    assert np.unique(decode(str(tmp_path / "x.png"), Fit(8, background=background))).tolist() == expected


def test_a_long_image_is_cropped_padded_or_stretched(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 8), (0, 0, 0))
    image.paste((200, 200, 200), (24, 0, 32, 8))  # its right quarter
    image.save(tmp_path / "x.png")
    cropped, padded, stretched = (
        decode(str(tmp_path / "x.png"), Fit(8, how, "white"))[0] for how in ("crop", "pad", "stretch")
    )
    assert np.unique(cropped).tolist() == [0]
    assert np.unique(padded[[0, 1, 2, 5, 6, 7]]).tolist() == [255]
    assert padded[3:5, 0].tolist() == [0, 0]
    assert padded[3:5, 7].tolist() == [200, 200]
    assert stretched[:, 0].tolist() == [0] * 8
    assert stretched[:, 7].tolist() == [200] * 8


def test_sets_that_are_fitted_otherwise_are_others(tmp_path: Path) -> None:
    class_folders(tmp_path / "photos/train", {"a": 4, "b": 4})
    class_folders(tmp_path / "photos/test", {"a": 2, "b": 2}, first=50)
    root = tmp_path / "photos"
    digests = {
        how: load_dataset(config(root, **settings), 0).digest
        for how, settings in {
            "usual": {}, "pad": {"fit": "pad"}, "stretch": {"fit": "stretch"}, "black": {"background": "black"},
            "same": {"background": "#ffffff"},
        }.items()
    }  # fmt: skip
    assert digests["usual"] == digests["same"]
    assert len(set(digests.values())) == 4


def test_class_folders_of_one_name_in_two_encodings_are_refused(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"caf\u00e9": 3, "cafe\u0301": 3, "tea": 3})
    with pytest.raises(InputError, match="their names differ in how accents are encoded alone; make them one"):
        load_dataset(config(tmp_path), 0)


def test_hidden_folders_are_counted(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"a": 4, "b": 4, ".c": 4})
    class_folders(tmp_path / "test", {"a": 2, "b": 2}, first=50)
    class_folders(tmp_path / "train/a", {".thumbnails": 4})
    assert "files that are not read are left out: 2 hidden folder" in told(tmp_path)


def test_test_images_of_classes_beside_training_images_without_are_counted(tmp_path: Path) -> None:
    for k in range(4):
        save(tmp_path / "train" / f"{k}.png", k)
    class_folders(tmp_path / "test", {"a": 2, "b": 3}, first=50)
    assert "5 image of the test part, as training images without classes teach none" in told(tmp_path)


@pytest.mark.parametrize("where", ["images", "train/images"])
def test_a_single_class_with_folders_in_it_is_told(tmp_path: Path, where: str) -> None:
    class_folders(tmp_path / where, {"cat": 4, "dog": 4})
    assert (
        f"{tmp_path / where} is taken as the only class, with 2 folders in it (cat, dog, ...); if they are the "
        f"classes, move them one folder up, or without other splits: dataset.root={tmp_path / where}"
    ) in told(tmp_path)


@pytest.mark.parametrize("where", [".", "train"])
def test_a_broken_link_among_the_folders_of_classes_is_named(tmp_path: Path, where: str) -> None:
    class_folders(tmp_path / where, {"cat": 4, "dog": 4})
    (tmp_path / where / "owl").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"owl: is a link to .*/gone, which is not there; mend it or remove it"):
        load_dataset(config(tmp_path), 0)


def test_a_data_set_that_lies_one_folder_deeper_is_not_a_class(tmp_path: Path) -> None:
    class_folders(tmp_path / "photos/train", {"a": 2, "b": 2})
    class_folders(tmp_path / "photos/test", {"a": 2, "b": 2}, first=50)
    with pytest.raises(InputError, match=r"photos: has the splits of a data set in it, so it is no class; give it as"):
        load_dataset(config(tmp_path), 0)


@pytest.mark.parametrize("extra", ["test", "train", "train/a", "."])
def test_a_split_is_no_folder_of_more_images_without_labels(tmp_path: Path, extra: str) -> None:
    class_folders(tmp_path / "train", {"a": 4, "b": 4})
    class_folders(tmp_path / "test", {"a": 2, "b": 2}, first=50)
    with pytest.raises(InputError, match=r"belongs to the data set in .*, which would miss it; name another folder"):
        load_dataset(config(tmp_path, unlabelled=str(tmp_path / extra)), 0)


def test_files_beside_folders_that_are_splits_are_counted(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"a": 4, "b": 4})
    (tmp_path / "test").write_bytes((tmp_path / "train/a/000.png").read_bytes())
    (tmp_path / "README.md").write_text("digits")
    (tmp_path / "more.zip").write_text("")
    assert "files that are not read are left out: 1 .zip, 1 file without an ending" in told(tmp_path)


def test_a_class_without_a_training_image_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 4, "b": 8, "c": 8})
    assert untaught(load_dataset(config(tmp_path), 0)) == []
    (line,) = untaught(load_dataset(config(tmp_path, train_samples=2), 0))
    assert line[:-1] == "the training images have no image of 1 class: "


def test_classes_whose_names_nearly_agree_are_named(tmp_path: Path) -> None:
    class_folders(tmp_path, {"Owl": 4, "cat": 4, "owl": 4, "snow owl": 4, "snowowl": 4})
    assert alike(load_dataset(config(tmp_path), 0)) == [
        "taken as different classes: 'Owl' and 'owl', 'snow owl' and 'snowowl'"
    ]


def test_files_without_an_ending_are_counted(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "a" / "003.png").rename(tmp_path / "a" / "003")
    assert "1 file without an ending" in told(tmp_path)


def test_copies_of_measured_images_among_those_that_are_learnt_from_are_counted(tmp_path: Path) -> None:
    class_folders(tmp_path / "photos/train", {"a": 6, "b": 6})
    class_folders(tmp_path / "photos/test", {"a": 3, "b": 3}, first=20)
    more = tmp_path / "more"
    class_folders(more, {"x": 4}, first=40)
    assert copies(load_dataset(config(tmp_path / "photos", unlabelled=str(more)), 0)) == []
    for k, path in enumerate(sorted((tmp_path / "photos/test").rglob("*.png"))[:2]):
        (more / f"renamed{k}.png").write_bytes(path.read_bytes())
    said = told(tmp_path / "photos", unlabelled=str(more))
    assert "warning: 2 test images of 6 have the same content as unlabelled images" in said
    (tmp_path / "photos/train/a/copy.png").write_bytes((tmp_path / "photos/test/b/000.png").read_bytes())
    assert "1 test image of 6 have" in told(tmp_path / "photos")


def encoded(**options: Any) -> bytes:
    stream = io.BytesIO()
    picture(1, (64, 64)).save(stream, **options)
    return stream.getvalue()


BROKEN = {
    "no bytes": b"",
    "half a file": encoded(format="PNG")[:200],
    "a header alone": encoded(format="JPEG")[:20],
    "text": b"<html>not found</html>",
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_line(tmp_path: Path, case: str) -> None:
    (tmp_path / "x.png").write_bytes(BROKEN[case])
    with pytest.raises(InputError, match=r"x\.png: can't be read as an image: ") as error:
        decode(str(tmp_path / "x.png"), Fit(8))
    assert "\n" not in str(error.value)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "BMP", "PPM", "WEBP"]),
    places=st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(1000, 10_000),
)
def test_a_mutated_image_is_read_or_refused_in_one_line(
    tmp_path: Path, kind: str, places: list[tuple[int, int]], cut: int
) -> None:
    exif = {"exif": EXIF} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    content = bytearray(encoded(format=kind, **exif))
    for place, value in places:
        content[place % len(content)] = value
    path = tmp_path / "x.png"
    path.write_bytes(content[: cut * len(content) // 10_000])
    try:
        assert decode(str(path), Fit(8)).shape == (3, 8, 8)
    except InputError as error:
        said = str(error)
        if not said.startswith(f"{path}: can't be read as an image: ") or "\n" in said:
            raise AssertionError(said) from error


def test_no_part_of_a_set_counts_twice(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"a": 5, "b": 5})
    class_folders(tmp_path / "more", {"x": 3}, first=30)
    assert len(collection_of(config(tmp_path, unlabelled=str(tmp_path / "more"))).labels) == 13


def test_what_is_no_file_and_what_has_no_label_is_counted(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"a": 5, "b": 5})
    class_folders(tmp_path / "test", {"a": 2, "b": 2}, first=30)
    os.mkfifo(tmp_path / "train" / "a" / "pipe.png")
    assert "files that are not read are left out: 1 .png that is a pipe or a device" in told(tmp_path)
    lines = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in sorted(tmp_path.rglob("0*.png"))]
    (tmp_path / "labels.csv").write_text("\n".join(lines[1:]))
    assert lines[0].startswith("test/")
    said = told(tmp_path, labels="labels.csv")
    assert "1 image of the test part without a label in labels.csv" in said
