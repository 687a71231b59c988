"""Your own images: `dataset=image_folder dataset.root=FOLDER`, in one of these layouts.

train/<class>/..  test/<class>/..   or val/ instead of test/; with both, val/ is the validation set
test/<class>/..                     images that a trained network is measured on; there is nothing to train on
<class>/..                          split by the seed into 60 % training, 20 % validation, 20 % test images
a.png b.png ..                      a flat folder: no labels, for pre-training only
any, with dataset.labels=FILE.csv   lines of path,label or, below a header, path,label,split; others have no label
any, with dataset.labels=none       all images, without labels

`training`, `testing`, `valid`, `validation` and `dev` are splits, too, in capitals or not. No image is left out in
silence: what is in none of these places, or in a format that is not read, is refused or counted.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from fasthebb_cli.data.collection import Collection, from_files, root_of
from fasthebb_cli.data.files import ImageFile
from fasthebb_cli.data.label_table import listed_labels
from fasthebb_cli.data.walk import (
    NO_LABELS,
    SPLITS,
    SUFFIXES,
    Passed,
    at_least_one,
    class_folders,
    count_beside,
    images_by_class,
    list_images,
    named,
    passed_notes,
    refuse_broken_links,
    refuse_loose,
    split_folders,
    subfolders,
)
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import DatasetConfig


def image_folder(config: DatasetConfig) -> Collection:
    """The images of a folder, see above; dataset.unlabelled=FOLDER adds images for pre-training.

    Raises:
        InputError: a folder or file is missing, empty or ambiguous.
    """
    root = root_of(config)
    if not root.is_dir():
        raise InputError(f"dataset.root: there is no folder {root}")
    extra = None if config.unlabelled is None else Path(config.unlabelled).expanduser().absolute()
    if extra is not None and not extra.is_dir():
        raise InputError(f"dataset.unlabelled: there is no folder {extra}")
    if extra is not None:
        _refuse_split_as_extra(root, extra)
    classes: tuple[str, ...] = ()
    parts: Mapping[str, Iterable[ImageFile]]
    passed: Passed = Counter()
    notes: tuple[str, ...] = ()
    if config.labels == NO_LABELS:
        problem = f"dataset.root: no images in {root}; looked for {', '.join(SUFFIXES)}"
        parts = {"train": at_least_one(list_images(root, extra, passed), problem)}
    elif config.labels is not None:
        classes, parts, notes = listed_labels(config.labels, root, extra, passed)
    else:
        classes, parts = _layout(root, extra, passed)
    if extra is not None:
        problem = f"dataset.unlabelled: no images in {extra}; looked for {', '.join(SUFFIXES)}"
        found = at_least_one(list_images(extra, None, passed), problem)
        more = (file._replace(name=f"unlabelled/{file.name}") for file in found)
        parts = {**parts, "unlabelled": chain(more, parts.get("unlabelled", ()))}
    collection = from_files(parts, classes, config)
    return replace(collection, notes=(*passed_notes(passed), *notes, *_inner_folders(root, classes)))


def _inner_folders(root: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """A line on a single class that has several folders in it, which may be the classes."""
    if len(classes) != 1:
        return ()
    (folder,) = [place for place in (root / classes[0], root / "train" / classes[0]) if place.is_dir()][:1] or [root]
    inner = [place.name for place in subfolders(folder)]
    if len(inner) < 2:
        return ()
    return (
        f"{folder} is taken as the only class, with {len(inner):,} folders in it ({', '.join(inner[:3])}, ...); if "
        f"they are the classes, move them one folder up, or without other splits: dataset.root={folder}",
    )


def _refuse_split_as_extra(root: Path, extra: Path) -> None:
    """Raises:
    InputError: the folder of images without labels is a split of the data set, or in one: it would be missing there.
    """
    place, top = Path(os.path.realpath(extra)), Path(os.path.realpath(root))
    first = place.relative_to(top).parts[:1] if place.is_relative_to(top) else ()
    if place == top or (first and first[0].lower() in {name for names in SPLITS.values() for name in names}):
        raise InputError(
            f"dataset.unlabelled={extra}: belongs to the data set in {root}, which would miss it; name another folder"
        )


def _layout(root: Path, extra: Path | None, passed: Passed) -> tuple[tuple[str, ...], dict[str, Iterable[ImageFile]]]:
    """Classes and files of each part, by the names of the folders."""
    splits = split_folders(root, extra)
    if splits and "train" not in splits:
        return _measured(root, splits, extra, passed)
    base = splits.pop("train", root)
    names = class_folders(base, extra)
    if not names:
        problem = f"dataset.root: no images in {base}; looked for {', '.join(SUFFIXES)}"
        if splits:
            refuse_loose(root, splits.values())
        for split, folder in splits.items():
            told = f"image of the {split} part, as training images without classes teach none"
            passed[told] += sum(1 for _ in list_images(folder))
        return (), {"train": at_least_one(list_images(base, extra, passed), problem)}
    if base == root:
        _refuse_splits(root, names)
        refuse_broken_links(root)
    else:
        refuse_broken_links(base)
        refuse_loose(root, [])
        count_beside(root, passed)
    parts: dict[str, Iterable[ImageFile]] = {"train": images_by_class(base, names, root, extra, passed)}
    for part, folder in zip(("test", "validation"), splits.values(), strict=False):
        parts[part] = images_by_class(folder, names, root, extra, passed)
    return names, parts


def _measured(
    root: Path, splits: Mapping[str, Path], extra: Path | None, passed: Passed
) -> tuple[tuple[str, ...], dict[str, Iterable[ImageFile]]]:
    """Classes and files of images that are measured alone: there is no folder train."""
    names = tuple(sorted({name for folder in splits.values() for name in class_folders(folder, extra)}))
    if not names:
        raise InputError(
            f"{root}: has {splits[min(splits)].name} but no folder train, and no class folders with images; name one "
            "train, or see dataset.labels"
        )
    refuse_loose(root, [])
    count_beside(root, passed)
    parts: dict[str, Iterable[ImageFile]] = {"train": ()}
    for part, folder in zip(("test", "validation"), splits.values(), strict=False):
        parts[part] = images_by_class(folder, names, root, extra, passed)
    return names, parts


def _refuse_splits(root: Path, names: Sequence[str]) -> None:
    """Raises:
    InputError: the class folders have the same subfolders, so they are no classes.
    """
    for name in names:
        if named(root / name, "train"):
            raise InputError(
                f"{root / name}: has the splits of a data set in it, so it is no class; give it as dataset.root, or "
                "list labels with dataset.labels"
            )
    inner = [{folder.name for folder in subfolders(root / name)} for name in names]
    alike = len(names) > 1 and len(inner[0]) > 1 and all(names_here == inner[0] for names_here in inner)
    if alike and not all(re.fullmatch(r"[\d._-]+", name) for name in inner[0]):  # else days or years
        raise InputError(
            f"{root}: {names[0]} and {names[1]} have the same subfolders ({', '.join(sorted(inner[0])[:3])}), so they "
            f"seem to be splits, not classes; call them train and test, or list labels with dataset.labels"
        )
