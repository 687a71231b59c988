"""Some of a data set's classes, and the images whose labels may be read: by a list, or so many of each class."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fasthebb.card import ModelCard
from fasthebb_cli.data.dataset import Dataset, label_subset, load_dataset
from fasthebb_cli.errors import InputError
from fasthebb_cli.run.classes import matched
from fasthebb_cli.run.dataset import untaught
from fasthebb_cli.settings.config import DatasetConfig
from fasthebb_cli.settings.load import with_defaults
from fasthebb_cli.stages.images import label_fraction, labelled_images
from tests.conftest import loaded
from tests.data.images import class_folders, save


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    class_folders(tmp_path / "photos/train", {"cat": 10, "dog": 10, "two words": 10})
    class_folders(tmp_path / "photos/test", {"cat": 3, "dog": 3, "two words": 3}, first=50)
    return tmp_path / "photos"


def config(root: Path, **settings: Any) -> DatasetConfig:
    return with_defaults(DatasetConfig, name="image_folder", root=str(root), size=8, **settings)


def digits(**settings: Any) -> DatasetConfig:
    return with_defaults(DatasetConfig, name="digits", size=8, mirror=False, **settings)


def written(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines))
    return str(path)


def test_classes_that_a_file_names(photos: Path, tmp_path: Path) -> None:
    names = written(tmp_path / "names.txt", "# ours", "two words", "", "cat  a pet")
    some = load_dataset(config(photos, classes=names), 0)
    assert some.classes == ("cat", "two words")
    assert len(some.test) == 6
    assert len(some.train) + len(some.validation) == 20
    assert set(some.labels.tolist()) == {0, 1}
    whole = load_dataset(config(photos), 0)
    assert len(some.source) == 26 < len(whole.source)
    assert some.digest != whole.digest


def test_classes_of_arrays(tmp_path: Path) -> None:
    some = load_dataset(digits(classes=written(tmp_path / "names.txt", "7", "1")), 0)
    whole = load_dataset(digits(), 0)
    assert some.classes == ("1", "7")
    chosen = torch.cat([some.train, some.validation, some.test])
    assert set(some.labels[chosen].tolist()) == {0, 1}
    for label, name in enumerate((1, 7)):
        here = chosen[some.labels[chosen] == label]
        assert set(whole.labels[here].tolist()) == {name}
        assert len(here) == int((whole.labels == name).sum())
    assert some.digest != whole.digest


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["cat", "bird"], r"names.txt, line 2: no class 'bird'; there are: cat, dog, two words"),
        (["cat", "two words more"], r"names.txt, line 2: no class 'two words more'"),
        (["cat", "dog or other"], r"names.txt, line 2: no class 'dog or other'"),
        (["cat"], r"names.txt names 1 of the classes, and at least two are needed"),
        ([], r"names.txt names 0 of the classes"),
    ],
)
def test_a_list_of_classes_that_is_wrong(photos: Path, tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset(config(photos, classes=written(tmp_path / "names.txt", *lines)), 0)


def test_a_list_of_classes_that_is_not_there(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset.classes: can't read .*gone.txt"):
        load_dataset(config(photos, classes=str(tmp_path / "gone.txt")), 0)


def listed(photos: Path, labels: str, **settings: Any) -> Dataset:
    return load_dataset(config(photos, **settings), 0, labels)


def test_a_list_of_paths_is_taken_whole(photos: Path, tmp_path: Path) -> None:
    names = [
        path.relative_to(photos).as_posix() for name in ("cat", "dog") for path in (photos / "train" / name).iterdir()
    ]
    dataset = listed(photos, written(tmp_path / "labels.txt", *names), train_samples=20, validation_samples=10)
    given = loaded("dataset=image_folder", f"dataset.root={photos}", f"label_subset={tmp_path / 'labels.txt'}")
    chosen = labelled_images(dataset, given)
    assert len(chosen) == 20
    assert set(chosen.tolist()) == set(dataset.train.tolist())
    assert set(dataset.labels[chosen].tolist()) == {0, 1}
    assert set(dataset.labels[dataset.validation].tolist()) == {2}
    assert label_fraction(dataset, given) == 1.0


def test_names_without_folders_are_enough_where_they_are_of_one_image(photos: Path, tmp_path: Path) -> None:
    save(photos / "train/cat/only.png", 99)
    found = listed(photos, written(tmp_path / "a.txt", "only.png")).listed
    assert found is not None
    assert len(found) == 1
    with pytest.raises(InputError, match=r"a.txt, line 2: 000.png is the name of several images; give their paths"):
        listed(photos, written(tmp_path / "a.txt", "only.png", "000.png"))


def test_numbers_are_of_the_training_images_as_they_come(tmp_path: Path) -> None:
    dataset = load_dataset(digits(), 0, written(tmp_path / "fold.txt", "0 5 17", "1000"))
    assert dataset.listed is not None
    assert dataset.listed.tolist() == [0, 5, 17, 1000]
    assert torch.isin(dataset.listed, dataset.train).all()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["train/cat/000.png", "train/cat/099.png"], r"line 2: train/cat/099.png is no training image"),
        (["test/cat/000.png"], r"line 1: test/cat/000.png is no training image"),
        (["train/cat/000.png", "", "train/cat/000.png"], r"line 3: train/cat/000.png is listed twice"),
        (["3", "-1", "4"], r"labels.txt, line 2: -1 is no number, as others are; list numbers, or names or paths"),
        (["3", "train/cat/000.png"], r"labels.txt, line 2: train/cat/000.png is no number, as others are"),
        (["3", "30"], r"there is no image 30; the numbers are 0 to 29"),
        (["3", "4", "3"], r"3 is listed twice"),
        (["3", "9" * 5000], r"there is no image 9999999999999999999; the numbers are 0 to 29"),
        (["", " "], r"lists no images"),
    ],
)
def test_a_list_of_images_that_is_wrong(photos: Path, tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        listed(photos, written(tmp_path / "labels.txt", *lines))


def test_a_list_that_leaves_nothing_to_validate_on(photos: Path, tmp_path: Path) -> None:
    names = written(tmp_path / "labels.txt", *map(str, range(12)))
    with pytest.raises(InputError, match=r"label_subset lists 12 images, and only 10 are for training"):
        listed(photos, names, train_samples=10)


def test_so_many_labels_of_each_class_are_nested_in_larger_numbers() -> None:
    labels = torch.tensor([0] * 30 + [1] * 5 + [2] * 9)
    sets = [label_subset(labels, 1.0, 3, kind="stratified", per_class=count) for count in (1, 2, 5)]
    for count, chosen in zip((1, 2, 5), sets, strict=True):
        assert torch.bincount(labels[chosen]).tolist() == [count] * 3
    assert set(sets[0].tolist()) < set(sets[1].tolist()) < set(sets[2].tolist())
    with pytest.raises(InputError, match=r"labels_per_class=6: class .* has only 5 of the 44 training images"):
        label_subset(labels, 1.0, 3, kind="stratified", per_class=6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["labels_per_class=3", "label_fraction=0.1"], "labels_per_class and label_fraction both say how many labels"),
        (["labels_per_class=3", "label_subset=random"], "leave label_subset=random out"),
        (["labels_per_class=0"], "labels_per_class must be at least 1"),
        (["label_subset=stratifed"], "label_subset must be one of stratified, random, or a file, not 'stratifed'"),
        (["label_subset=setup.cfg"], "or a file, not 'setup.cfg'"),
    ],
)
def test_budgets_that_exclude_each_other(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        loaded(*words)


def test_a_list_excludes_a_number(tmp_path: Path) -> None:
    names = written(tmp_path / "labels.txt", "1")
    with pytest.raises(InputError, match="label_subset is a list, all of which is taken"):
        loaded(f"label_subset={names}", "label_fraction=0.5")


def test_names_are_the_same_however_their_accents_are_encoded(tmp_path: Path) -> None:
    one, two = "caf\u00e9", "cafe\u0301"
    root = tmp_path / "photos"
    class_folders(root / "train", {one: 6, "tea": 6})
    class_folders(root / "test", {two: 2, "tea": 2}, first=50)
    names = written(tmp_path / "names.txt", two, "tea")
    dataset = load_dataset(config(root, classes=names), 0, written(tmp_path / "labels.txt", f"train/{two}/000.png"))
    assert dataset.classes == (one, "tea")
    assert torch.bincount(dataset.labels[dataset.test]).tolist() == [2, 2]
    card = ModelCard("conv6", {}, 3, 8, ["tea", two], [0.5] * 3, [0.2] * 3, taught=True)
    found = matched(dataset, card, loaded("verb=evaluate", "stages=[evaluate]"))
    assert found.classes == ("tea", two)
    assert torch.equal(found.labels, 1 - dataset.labels)


def test_a_table_of_labels_names_files_however_their_accents_are_encoded(tmp_path: Path) -> None:
    for k, name in enumerate(("caf\u00e9.png", "tea.png", "b\u00e9.png", "c.png", "d.png", "e.png")):
        save(tmp_path / "photos" / name, k)
    lines = ["cafe\u0301.png,a", "tea.png,b", "be\u0301.png,a", "c.png,b", "d.png,a", "e.png,b"]
    table = written(tmp_path / "table.csv", *lines)
    assert load_dataset(config(tmp_path / "photos", labels=table), 0).classes == ("a", "b")


def test_numbers_do_not_count_a_part_of_the_classes(tmp_path: Path) -> None:
    names, numbers = written(tmp_path / "names.txt", "7", "1"), written(tmp_path / "fold.txt", "0 1 2 3")
    with pytest.raises(InputError, match=r"lists numbers, which count the images of all classes; with dataset.classes"):
        load_dataset(digits(classes=names), 0, numbers)


def test_classes_of_which_a_list_has_no_image_are_named(photos: Path, tmp_path: Path) -> None:
    dataset = listed(photos, written(tmp_path / "labels.txt", "train/cat/000.png", "train/dog/000.png"))
    assert untaught(dataset) == ["label_subset lists no image of 1 class: two words"]
    assert untaught(load_dataset(config(photos), 0)) == []


@pytest.mark.parametrize("key", ["dataset.classes", "label_subset"])
def test_a_list_that_is_a_pipe_is_not_waited_for(photos: Path, tmp_path: Path, key: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    pipe = str(tmp_path / "pipe")
    given, names = (config(photos), pipe) if key == "label_subset" else (config(photos, classes=pipe), None)
    with pytest.raises(InputError, match=rf"{key}: .*pipe is no regular file; expected"):
        load_dataset(given, 0, names)
