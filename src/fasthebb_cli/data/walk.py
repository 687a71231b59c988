"""Which image files and folders there are below a folder, by their names alone: classes, splits, what is not read.

Functions here yield images one by one, as there may be millions.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from fasthebb_cli.data.files import ImageFile, composed
from fasthebb_cli.data.source import more_suffixes
from fasthebb_cli.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff",
            ".ppm", ".pgm", ".pbm", ".pnm", *more_suffixes())  # fmt: skip
# Texts that lie beside images. All other files may be pictures, and are counted if they are not read
TEXTS = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".md", ".html", ".htm", ".log",
         ".ini", ".db", ".py", ".sh")  # fmt: skip
SPLITS = {"train": ("train", "training"), "test": ("test", "testing"), "val": ("val", "valid", "validation", "dev")}
Passed = Counter[str]  # endings of files that are not read, or what else they are
NO_LABELS = "none"  # value of dataset.labels


def passed_notes(passed: Passed) -> tuple[str, ...]:
    """A line for all files that are not read; none, if there are none."""
    passed = +passed
    if not passed:
        return ()
    told = ", ".join(f"{count:,} {what}" for what, count in sorted(passed.items()))
    heic = "; .heic is read with pip install 'fasthebb[heic]'" if {".heic", ".heif"} & passed.keys() else ""
    return (f"files that are not read are left out: {told}{heic}",)


def at_least_one(files: Iterable[ImageFile], problem: str) -> Iterator[ImageFile]:
    """The same files.

    Raises:
        InputError: there are none; its message is `problem`.
    """
    empty = True
    for file in files:
        empty = False
        yield file
    if empty:
        raise InputError(problem)


def split_folders(root: Path, extra: Path | None) -> dict[str, Path]:
    """The folders that are named as splits: train, then test and val, those that there are; empty without such names.

    Raises:
        InputError: two folders are the same split, or images lie beside them.
    """
    folders = subfolders(root, extra)
    found = {split: [folder for folder in folders if folder.name.lower() in names] for split, names in SPLITS.items()}
    for split, several in found.items():
        if len(several) > 1:
            raise InputError(f"{several[0]} and {several[1]}: both are named as the split {split}; keep one of them")
    splits = {split: several[0] for split, several in found.items() if several}
    others = [folder for folder in folders if folder not in splits.values() and _has_images(folder)]
    if splits and others:
        raise InputError(
            f"{others[0]}: lies beside {splits[min(splits)]}, which is named as a split, and would be left out; move "
            f"it, or rename one of them, or for images without labels, dataset.unlabelled={others[0]}"
        )
    return splits


def refuse_loose(folder: Path, among: Iterable[Path]) -> None:
    """Raises:
    InputError: images lie beside the folders in it, or in those `among`.
    """
    for place in (folder, *among):
        beside = min((p for p in place.iterdir() if _is_image(p.name) and p.is_file()), default=None)
        if beside is not None:
            raise InputError(
                f"{beside}: lies beside folders of classes or splits; move it into one, or list labels with "
                f"dataset.labels=FILE.csv, or take all images without labels: dataset.labels={NO_LABELS}"
            )


def named(root: Path, split: str) -> list[str]:
    """Folders of root that are named as the split."""
    return [folder.name for folder in subfolders(root) if folder.name.lower() in SPLITS[split]]


def subfolders(folder: Path, extra: Path | None = None) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and p != extra)


def class_folders(base: Path, extra: Path | None = None) -> tuple[str, ...]:
    """Names of the subfolders, sorted; empty if none of them has images."""
    folders = subfolders(base, extra)
    if not any(_has_images(p) for p in folders):
        return ()
    names = dict[str, str]()
    for folder in folders:
        other = names.setdefault(composed(folder.name), folder.name)
        if other != folder.name:
            raise InputError(
                f"{folder} and {base / other}: their names differ in how accents are encoded alone; make them one"
            )
    return tuple(names.values())


def _has_images(folder: Path) -> bool:
    return any(_is_image(name) for _, _, names in os.walk(folder, followlinks=True) for name in names)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def images_by_class(
    base: Path, classes: tuple[str, ...], root: Path, extra: Path | None = None, passed: Passed | None = None
) -> Iterator[ImageFile]:
    """Images in the class folders of `base` with their labels; names are relative to `root`.

    Args:
        passed: see `list_images`.

    Raises:
        InputError: a class folder is empty or not among the classes, or images lie beside them.
    """
    refuse_loose(base, [])
    if passed is not None:
        count_beside(base, passed)
    number = {composed(name): k for k, name in enumerate(classes)}
    present = {folder.name for folder in subfolders(base, extra)}
    unknown = sorted(name for name in present if composed(name) not in number)
    if unknown:
        listed = ", ".join(classes[:10]) + (f" and {len(classes) - 10:,} more" if len(classes) > 10 else "")
        raise InputError(
            f"{base / unknown[0]}: there is no class {unknown[0]!r} among the training images, which have: {listed}"
        )
    if not present:
        raise InputError(f"{base}: has no class folders with images")
    for name in sorted(present):
        prefix, problem = (base / name).relative_to(root).as_posix(), "the class folder has no images"
        found = list_images(base / name, None, passed)
        for file in at_least_one(found, f"{base / name}: {problem}; fill it or remove it"):
            yield file._replace(name=f"{prefix}/{file.name}", label=number[composed(name)])


def list_images(top: Path, extra: Path | None = None, passed: Passed | None = None) -> Iterator[ImageFile]:
    """All images in a folder and its subfolders, sorted by name, without hidden ones and those in the folder `extra`.

    Args:
        passed: counts the pictures and films that are not read.

    Raises:
        InputError: a folder can't be read.
    """
    passed = Counter() if passed is None else passed
    return _images_below(os.fspath(top), "", None if extra is None else os.fspath(extra), set(), passed)


def _images_below(folder: str, prefix: str, extra: str | None, seen: set[str], passed: Passed) -> Iterator[ImageFile]:
    """Images in one folder and its subfolders. Folders' names end in a slash, so that they sort as whole paths do."""
    if os.path.realpath(folder) in seen:
        raise InputError(f"{folder}: links to a folder that is read already; remove the link")
    seen.add(os.path.realpath(folder))
    try:
        with os.scandir(folder) as entries:
            names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries)
    except OSError as error:
        raise InputError(f"{folder}: can't be read: {error.strerror}") from error
    for name in names:
        path = os.path.join(folder, name)
        if name.startswith("."):
            _count(name, passed)
            continue
        if name.endswith("/"):
            if path[:-1] != extra:
                yield from _images_below(path[:-1], prefix + name, extra, seen, passed)
        elif _is_image(name):
            found = _image(prefix + name, path)
            if found is None:
                passed[f"{os.path.splitext(name)[1].lower()} that is a pipe or a device"] += 1
            else:
                yield found
        else:
            _count(name, passed)


def count_beside(folder: Path, passed: Passed) -> None:
    """Counts what lies in a folder of which the subfolders alone are read."""
    for path in folder.iterdir():
        if path.name.startswith(".") or not path.is_dir():
            _count(f"{path.name}/" if path.is_dir() else path.name, passed)


def _count(name: str, passed: Passed) -> None:
    """Counts a file that is not read, or a hidden folder, whose name ends in a slash. macOS writes files of ._names."""
    ending = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        passed["hidden folder"] += name.endswith("/")
        passed["hidden image"] += name.lower().endswith(SUFFIXES) and not name.startswith("._")
    elif ending not in TEXTS:
        passed[ending or "file without an ending"] += 1


def refuse_broken_links(folder: Path) -> None:
    """Raises:
    InputError: a link in the folder leads nowhere, where it may have led to a class's folder.
    """
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not path.exists() and not path.suffix:
            raise InputError(f"{path}: is a link to {os.readlink(path)}, which is not there; mend it or remove it")


def _image(name: str, path: str) -> ImageFile | None:
    """The file; None if it is no regular file. One that can't be read fails later, when it is decoded."""
    try:
        status = os.stat(path)
    except OSError:  # such as a broken link
        return ImageFile(name, path, 0)
    if not stat.S_ISREG(status.st_mode):  # a pipe or a socket would never end
        return None
    return ImageFile(name, path, status.st_size, changed=status.st_ctime_ns)
