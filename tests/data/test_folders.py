"""Your own images: every layout, labels from a table, additional unlabelled images, and messages about bad folders."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fasthebb_cli.data.dataset import Dataset, _collection, load_dataset
from fasthebb_cli.data.source import DecodedFiles, ImageFiles, InMemory
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.settings.config import DatasetConfig
from fasthebb_cli.settings.load import with_defaults
from tests.data.images import class_folders, picture, save


def load(root: Path, seed: int = 0, **settings: Any) -> Dataset:
    return load_dataset(with_defaults(DatasetConfig, name="image_folder", root=str(root), size=8, **settings), seed)


def sizes(dataset: Dataset) -> tuple[int, ...]:
    return tuple(len(part) for part in (dataset.train, dataset.validation, dataset.test, dataset.unlabelled))


def test_a_pool_is_split_by_the_seed_into_stratified_parts(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 20, "dog": 30, "ant": 50})
    dataset, again, other = load(tmp_path), load(tmp_path), load(tmp_path, seed=1)
    assert dataset.classes == ("ant", "cat", "dog")
    assert sizes(dataset) == (60, 20, 20, 0)
    parts = torch.cat([dataset.train, dataset.validation, dataset.test])
    assert parts.sort().values.tolist() == list(range(100))
    for part in (dataset.train, dataset.validation, dataset.test):
        assert torch.equal(part, part.sort().values)
        counts = torch.bincount(dataset.labels[part], minlength=3) / len(part)
        assert torch.allclose(counts, torch.tensor([0.5, 0.2, 0.3]))
    assert torch.equal(dataset.train, again.train)
    assert not torch.equal(dataset.train, other.train)
    assert dataset.source is other.source, "decoded again for another seed"


def test_labels_and_pixels_belong_together(tmp_path: Path) -> None:
    class_folders(tmp_path, {"b": 3, "a": 3})  # seeds 0..2 are b
    dataset = load(tmp_path)
    expected = torch.stack([torch.tensor(picture(i).getpixel((0, 0))) for i in (3, 4, 5, 0, 1, 2)])
    assert torch.equal(dataset.source.read(torch.arange(6))[:, :, 0, 0].long(), expected)
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("folder", ["test", "val"])
def test_a_test_folder_is_the_test_set(tmp_path: Path, folder: str) -> None:
    class_folders(tmp_path / "train", {"a": 10, "b": 10})
    class_folders(tmp_path / folder, {"a": 3, "b": 4}, first=50)
    dataset = load(tmp_path)
    assert sizes(dataset) == (16, 4, 7, 0)
    assert dataset.test.tolist() == list(range(20, 27))
    assert dataset.labels[20:].tolist() == [0, 0, 0, 1, 1, 1, 1]
    fewer = load(tmp_path, test_samples=4, train_samples=8, validation_samples=2)
    assert sizes(fewer) == (8, 2, 4, 0)
    assert set(fewer.train.tolist()) <= set(dataset.train.tolist())
    assert torch.bincount(fewer.labels[fewer.test]).min() >= 1


def test_test_and_val_are_test_and_validation(tmp_path: Path) -> None:
    for first, (folder, count) in enumerate({"train": 5, "test": 2, "val": 3}.items()):
        class_folders(tmp_path / folder, {"a": count, "b": count}, first=20 * first)
    dataset = load(tmp_path)
    assert sizes(dataset) == (10, 6, 4, 0)
    assert dataset.test.tolist() == [10, 11, 12, 13]
    assert sizes(load(tmp_path, validation_samples=2)) == (10, 2, 4, 0)


def test_train_alone_is_a_pool(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"a": 10, "b": 10})
    assert sizes(load(tmp_path)) == (12, 4, 4, 0)


def test_nested_folders_hidden_files_and_other_files(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 5, "b/deep/down": 5})
    save(tmp_path / "a/upper.JPG", 90)
    save(tmp_path / "a/.hidden.png", 91)
    save(tmp_path / ".thumbnails/x.png", 92)
    (tmp_path / "a/notes.txt").write_text("not an image")
    (tmp_path / "README.md").write_text("not an image")
    dataset = load(tmp_path)
    assert dataset.classes == ("a", "b")
    assert dataset.labels.tolist() == [0] * 6 + [1] * 5


def test_a_flat_folder_has_no_labels_and_is_all_for_training(tmp_path: Path) -> None:
    for i in range(7):
        save(tmp_path / f"{i}.png", i)
    dataset = load(tmp_path)
    assert dataset.classes == ()
    assert sizes(dataset) == (7, 0, 0, 0)
    assert dataset.labels.tolist() == [-1] * 7
    with pytest.raises(InputError, match=r"dataset.train_samples: the 7 images have no labels"):
        load(tmp_path, train_samples=3)


@pytest.mark.parametrize("inside", [True, False])
def test_more_images_without_labels(tmp_path: Path, inside: bool) -> None:
    class_folders(tmp_path / "root", {"a": 5, "b": 5})
    extra = tmp_path / ("root/more" if inside else "more")
    class_folders(extra, {"x": 3}, first=70)
    dataset = load(tmp_path / "root", unlabelled=str(extra))
    assert dataset.classes == ("a", "b")
    assert sizes(dataset) == (6, 2, 2, 3)
    assert dataset.labels[dataset.unlabelled].tolist() == [-1] * 3
    assert dataset.source.read(dataset.unlabelled)[0, :, 0, 0].tolist() == np.asarray(picture(70))[0, 0].tolist()


@pytest.mark.parametrize("header", ["", "path,label\n", "\ufeffPath,Label\n", "id,label,path\n"])
def test_labels_from_a_table(tmp_path: Path, header: str) -> None:
    for i in range(12):
        save(tmp_path / f"images/{i:02}.png", i)
    swapped = header.startswith("id")
    rows = [(f"images/{i:02}.png" if i % 2 else f"{i:02}.png", "ab"[i % 2]) for i in range(10)]
    lines = [f"{i},{label},{path}" if swapped else f"{path},{label}" for i, (path, label) in enumerate(rows)]
    table = tmp_path / "labels.csv"  # paths in odd rows are relative to the table, in even ones to root
    table.write_text(header + "\n".join(lines) + "\n\n", encoding="utf-8")
    dataset = load(tmp_path / "images", labels=str(table))
    assert dataset.classes == ("a", "b")
    assert sizes(dataset) == (6, 2, 2, 2)
    assert dataset.labels.tolist() == [0, 1] * 5 + [-1, -1]


@pytest.mark.parametrize(("held_out", "expected"), [("test", (4, 1, 2)), ("val", (4, 1, 2))])
def test_a_table_says_the_splits(tmp_path: Path, held_out: str, expected: tuple[int, int, int]) -> None:
    for k in range(8):
        save(tmp_path / "photos" / f"{k}.png", k)
    splits = ["train", "", "Training", "train", "", held_out, held_out.upper(), ""]
    lines = [f"{k}.png,{'ab'[k % 2]},{split}" for k, split in enumerate(splits[:7])]
    (tmp_path / "photos/table.csv").write_text("\n".join(["path,label,split", *lines]))
    dataset = load(tmp_path / "photos", labels="table.csv", validation_samples=1)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == expected
    assert len(dataset.unlabelled) == 1
    assert dataset.notes == ("table.csv: 2 images with a label have no split, and are training images",)
    (tmp_path / "photos/table.csv").write_text("path,label,split\n0.png,a,tset\n")
    _collection.cache_clear()
    with pytest.raises(InputError, match=r"line 2: no split is called 'tset'; choose from: train, training, test,"):
        load(tmp_path / "photos", labels="table.csv")


def test_a_table_in_root_keeps_the_test_folder(tmp_path: Path) -> None:
    lines = []
    for i, part in enumerate(["train"] * 10 + ["test"] * 4):
        save(tmp_path / f"{part}/{i:02}.png", i)
        lines.append(f"{part}/{i:02}.png,{'ab'[i % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines[1:-1]))
    dataset = load(tmp_path, labels="labels.csv")
    assert sizes(dataset) == (7, 2, 3, 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gone.png,a", r"labels.csv, line 2: 'gone.png' is no image below dataset.root"),
        ("1.png,b,test", r"labels.csv, line 2: has 3 columns; say which is which in a first line: path,label,split"),
        ('"1.png,b\n2.png,b', r"labels.csv, line 2: a quote opens in it and does not close"),
        ("1.png,b\0", r"labels.csv, line 2: has a null character in it"),
        ("1" * 300 + ".png,b", r"labels.csv, line 2: '1{80}'\.\.\. is no image below dataset.root"),
        ("1" * 200_000, r"labels.csv, line 2: is no csv \(field larger than field limit"),
        ("1.png", r"labels.csv, line 2: expected path,label, found '1.png'"),
        ("0.png,b", r"labels.csv, line 2: 0.png is listed twice"),
        ("", r"labels.csv, line 1: has 2 columns called label; keep one"),
        ("0.png,a,train\n1.png,b,Test", r"labels.csv: the column 'set' names splits; call it split, or remove it"),
    ],
)
def test_what_is_wrong_with_a_table(tmp_path: Path, line: str, message: str) -> None:
    class_folders(tmp_path, {".": 2})
    (tmp_path / "0.png").write_bytes((tmp_path / "000.png").read_bytes())
    (tmp_path / "1.png").write_bytes((tmp_path / "001.png").read_bytes())
    first = {"": "path,label,label", "0.png,a,t": "path,label,set"}.get(line[:9], "0.png,a")
    (tmp_path / "labels.csv").write_text(f"{first}\n{line}\n")
    with pytest.raises(InputError, match=message):
        load(tmp_path, labels="labels.csv")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("filename,class\n0.png,a\n", r"line 1: 'filename' is no image below .*; a header would have to be path,label"),
        ("path,label,split\n0.png,a,train\n1.png,,test\n", r"no images of the test part with a label \(1 have none\)"),
    ],
)
def test_what_a_table_should_have_said(tmp_path: Path, table: str, message: str) -> None:
    for k in range(2):
        save(tmp_path / f"{k}.png", k)
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(InputError, match=message):
        load(tmp_path, labels="labels.csv")


def empty_class(root: Path) -> None:
    (root / "train/c").mkdir()


def class_in_test_only(root: Path) -> None:
    save(root / "test/z/1.png", 1)


def flat_test(root: Path) -> None:
    save(root / "test/1.png", 1)


def stray_image(root: Path) -> None:
    save(root / "train/stray.png", 1)


def no_images(root: Path) -> None:
    shutil.rmtree(root / "train")


def broken_link(root: Path) -> None:
    (root / "train/a/x.png").symlink_to(root / "nowhere.png")


def unreadable(root: Path) -> None:
    (root / "train/b/001.png").write_bytes(b"no image")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty_class, r"train/c: the class folder has no images"),
        (class_in_test_only, r"test/z: there is no class 'z' among the training images"),
        (class_in_test_only, r"there is no class 'z' among the training images, which have: a, b"),
        (flat_test, r"lies beside folders of classes or splits"),
        (stray_image, r"train/stray.png: lies beside folders of classes or splits"),
        (no_images, r"dataset.root: no images in .*; looked for .jpg"),
        (broken_link, r"train/a/x.png: can't be read as an image: No such file or directory$"),
        (unreadable, r"train/b/001.png: can't be read as an image: cannot identify image file$"),
    ],
)
def test_what_is_wrong_with_a_folder(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    class_folders(tmp_path / "train", {"a": 5, "b": 5})
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_what_is_wrong_with_the_settings(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 5, "b": 5})
    with pytest.raises(InputError, match=r"dataset.root has no value"):
        load_dataset(with_defaults(DatasetConfig, name="image_folder", root=None, size=8), 0)
    with pytest.raises(InputError, match=r"dataset.root: there is no folder .*/gone"):
        load(tmp_path / "gone")
    with pytest.raises(InputError, match=r"dataset.unlabelled: there is no folder .*/gone"):
        load(tmp_path, unlabelled=str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"dataset.labels: there is no file .*gone.csv"):
        load(tmp_path, labels="gone.csv")
    with pytest.raises(InputError, match=r"dataset.train_samples=11: there are 10 images"):
        load(tmp_path, train_samples=11)
    with pytest.raises(InputError, match=r"dataset.validation_samples=8: there are 10 images"):
        load(tmp_path, validation_samples=8)


def test_in_memory_or_decoded_when_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path, {"a": 5, "b": 5})
    memory, files = load(tmp_path), load(tmp_path, in_memory=False)
    assert isinstance(memory.source, InMemory)
    assert isinstance(files.source, ImageFiles)
    assert torch.equal(memory.source.read(torch.arange(10)), files.source.read(torch.arange(10)))
    assert memory.digest == files.digest
    shutil.copytree(tmp_path, tmp_path / "copy")
    monkeypatch.setattr("fasthebb_cli.data.collection.MEMORY_LIMIT", 10 * 3 * 8 * 8 - 1)
    assert isinstance(load(tmp_path / "copy").source, ImageFiles)


def test_only_the_images_of_the_split_are_decoded_into_memory(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 20, "b": 20})
    part = {"train_samples": 10, "validation_samples": 4, "test_samples": 6}
    first = load(tmp_path, **part)
    source, used = first.source, torch.cat([first.train, first.validation, first.test])
    assert isinstance(source, DecodedFiles)
    assert source.is_decoded.nonzero().flatten().tolist() == used.sort().values.tolist()
    for seed in range(1, 8):  # others share the images in memory, and add theirs
        other = load(tmp_path, seed=seed, **part)
        assert other.source is source
        used = torch.cat([used, other.train, other.validation, other.test])
    assert source.is_decoded.nonzero().flatten().tolist() == used.unique().tolist()
    whole = load(tmp_path, in_memory=False).source
    assert torch.equal(source.read(used.unique()), whole.read(used.unique()))


def test_images_are_decoded_later_only_as_they_were(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 20, "b": 20})
    source = load(tmp_path, train_samples=10, validation_samples=4, test_samples=6).source
    assert isinstance(source, DecodedFiles)
    late = int((~source.is_decoded).nonzero()[0])
    path = Path(source.files.paths[late])
    path.write_bytes(Path(source.files.paths[0]).read_bytes() + b" ")
    with pytest.raises(RunError, match="was changed while the run reads it"):
        source.fill(torch.tensor([late]))


def test_the_digest_moves_with_the_images_not_with_the_root(tmp_path: Path) -> None:
    first = tmp_path / "first"
    class_folders(first, {"a": 5, "b": 5})
    digest = load(first).digest
    assert int(digest, 16) >= 0

    def changed(name: str, change: Callable[[Path], object]) -> str:
        shutil.copytree(first, tmp_path / name)
        change(tmp_path / name)
        return load(tmp_path / name).digest

    assert changed("moved", lambda root: None) == digest
    others = [
        changed("removed", lambda root: (root / "a/000.png").unlink()),
        changed("renamed", lambda root: (root / "a/000.png").rename(root / "a/zzz.png")),
        changed("relabelled", lambda root: (root / "a/000.png").rename(root / "b/a.png")),
        changed("edited", lambda root: save(root / "a/000.png", 99, (9, 9))),
        changed("class", lambda root: (root / "b").rename(root / "c")),
        load_dataset(with_defaults(DatasetConfig, name="image_folder", root=str(first), size=9), 0).digest,
    ]
    assert len({digest, *others}) == 7


def test_the_digest_moves_with_the_labels_of_a_table(tmp_path: Path) -> None:
    class_folders(tmp_path, {".": 6})
    digests = set()
    for labels in ("aaabbb", "bbbaaa"):
        table = tmp_path / f"{labels}.csv"
        table.write_text("\n".join(f"{i:03}.png,{label}" for i, label in enumerate(labels)))
        digests.add(load(tmp_path, labels=str(table)).digest)
    assert len(digests) == 2


def test_a_flat_folder_does_not_count_its_unlabelled_folder_twice(tmp_path: Path) -> None:
    class_folders(tmp_path, {".": 5, "more": 3})
    assert sizes(load(tmp_path, unlabelled=str(tmp_path / "more"))) == (5, 0, 0, 3)
