"""Your own images: `dataset=image_folder dataset.root=FOLDER`, in one of these layouts.

train/<class>/..  test/<class>/..   or val/ instead of test/; with both, val/ is the validation set
<class>/..                          split by the seed into 60 % training, 20 % validation, 20 % test images
a.png b.png ..                      a flat folder: no labels, for pre-training only
any, with dataset.labels=FILE.csv   lines of path,label or, below a header, path,label,split; others have no label
any, with dataset.labels=none       all images, without labels

`training`, `testing`, `valid`, `validation` and `dev` are splits, too, in capitals or not. No image is left out in
silence: what is in none of these places, or in a format that is not read, is refused or counted.

Functions here yield images one by one; only `from_files` makes a list, which may have millions of entries.
"""

import csv
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from fasthebb_cli.data.collection import Collection, from_files, root_of
from fasthebb_cli.data.files import FileList, ImageFile, composed
from fasthebb_cli.data.source import more_suffixes
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import DatasetConfig

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
            *more_suffixes())  # fmt: skip
# Pictures and films that are not read, and so are counted
UNREAD = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg", ".tga", ".dds", ".eps", ".exr", ".hdr", ".raw",
          ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".dcm", ".mp4", ".mov", ".avi")  # fmt: skip
SPLITS = {"train": ("train", "training"), "test": ("test", "testing"), "val": ("val", "valid", "validation", "dev")}
NO_LABELS = "none"  # value of dataset.labels
Passed = Counter[str]  # endings of files that are not read, or what else they are


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
    classes: tuple[str, ...] = ()
    parts: Mapping[str, Iterable[ImageFile]]
    passed: Passed = Counter()
    if config.labels == NO_LABELS:
        problem = f"dataset.root: no images in {root}; looked for {', '.join(SUFFIXES)}"
        parts = {"train": _at_least_one(list_images(root, extra, passed), problem)}
    elif config.labels is not None:
        classes, parts = _listed(config.labels, root, extra, passed)
    else:
        classes, parts = _layout(root, extra, passed)
    if extra is not None:
        problem = f"dataset.unlabelled: no images in {extra}; looked for {', '.join(SUFFIXES)}"
        found = _at_least_one(list_images(extra, None, passed), problem)
        more = (file._replace(name=f"unlabelled/{file.name}") for file in found)
        parts = {**parts, "unlabelled": chain(more, parts.get("unlabelled", ()))}
    collection = from_files(parts, classes, config)
    return replace(collection, notes=passed_notes(passed))


def passed_notes(passed: Passed) -> tuple[str, ...]:
    """A line for all files that are not read; none, if there are none."""
    passed = +passed
    if not passed:
        return ()
    told = ", ".join(f"{count:,} {what}" for what, count in sorted(passed.items()))
    heic = "; .heic is read with pip install 'fasthebb[heic]'" if {".heic", ".heif"} & passed.keys() else ""
    return (f"files that are not read are left out: {told}{heic}",)


def _at_least_one(files: Iterable[ImageFile], problem: str) -> Iterator[ImageFile]:
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


def _layout(root: Path, extra: Path | None, passed: Passed) -> tuple[tuple[str, ...], dict[str, Iterable[ImageFile]]]:
    """Classes and files of each part, by the names of the folders."""
    splits = split_folders(root, extra)
    base = splits.pop("train", root)
    names = class_folders(base, extra)
    if not names:
        problem = f"dataset.root: no images in {base}; looked for {', '.join(SUFFIXES)}"
        if splits:
            _refuse_loose(root, splits.values())
        for split, folder in splits.items():
            told = f"image of the {split} part, as training images without classes teach none"
            passed[told] += sum(1 for _ in list_images(folder))
        return (), {"train": _at_least_one(list_images(base, extra, passed), problem)}
    if base == root:
        _refuse_splits(root, names)
    else:
        _refuse_loose(root, [])
    parts: dict[str, Iterable[ImageFile]] = {"train": images_by_class(base, names, root, extra, passed)}
    for part, folder in zip(("test", "validation"), splits.values(), strict=False):
        parts[part] = images_by_class(folder, names, root, extra, passed)
    return names, parts


def split_folders(root: Path, extra: Path | None) -> dict[str, Path]:
    """The folders that are named as splits: train, then test and val, those that there are; empty without such names.

    Raises:
        InputError: two folders are the same split, there is none for training, or images lie beside them.
    """
    folders = _subfolders(root, extra)
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
    if splits and "train" not in splits:
        raise InputError(
            f"{root}: has {splits[min(splits)].name} but no folder train; name one so, or see dataset.labels"
        )
    return splits


def _refuse_splits(root: Path, names: Sequence[str]) -> None:
    """Raises:
    InputError: the class folders have the same subfolders, so they are no classes.
    """
    for name in names:
        if _named(root / name, "train"):
            raise InputError(
                f"{root / name}: has the splits of a data set in it, so it is no class; give it as dataset.root, or "
                "list labels with dataset.labels"
            )
    inner = [{folder.name for folder in _subfolders(root / name)} for name in names]
    alike = len(names) > 1 and len(inner[0]) > 1 and all(names_here == inner[0] for names_here in inner)
    if alike and not all(re.fullmatch(r"[\d._-]+", name) for name in inner[0]):  # else days or years
        raise InputError(
            f"{root}: {names[0]} and {names[1]} have the same subfolders ({', '.join(sorted(inner[0])[:3])}), so they "
            f"seem to be splits, not classes; call them train and test, or list labels with dataset.labels"
        )


def _refuse_loose(folder: Path, among: Iterable[Path]) -> None:
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


def _named(root: Path, split: str) -> list[str]:
    """Folders of root that are named as the split."""
    return [folder.name for folder in _subfolders(root) if folder.name.lower() in SPLITS[split]]


def _subfolders(folder: Path, extra: Path | None = None) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and p != extra)


def class_folders(base: Path, extra: Path | None = None) -> tuple[str, ...]:
    """Names of the subfolders, sorted; empty if none of them has images."""
    folders = _subfolders(base, extra)
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
    _refuse_loose(base, [])
    if passed is not None:
        passed["hidden folder"] += sum(p.is_dir() and p.name.startswith(".") for p in base.iterdir())
    number = {composed(name): k for k, name in enumerate(classes)}
    present = {folder.name for folder in _subfolders(base, extra)}
    unknown = sorted(name for name in present if composed(name) not in number)
    if unknown:
        raise InputError(f"{base / unknown[0]}: there is no class {unknown[0]!r} among the training images")
    if not present:
        raise InputError(f"{base}: has no class folders with images")
    for name in sorted(present):
        prefix, problem = (base / name).relative_to(root).as_posix(), "the class folder has no images"
        found = list_images(base / name, None, passed)
        for file in _at_least_one(found, f"{base / name}: {problem}; fill it or remove it"):
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
            passed["hidden folder"] += name.endswith("/")
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
        elif name.lower().endswith(UNREAD):
            passed[os.path.splitext(name)[1].lower()] += 1
        elif "." not in name:
            passed["file without an ending"] += 1


def _image(name: str, path: str) -> ImageFile | None:
    """The file; None if it is no regular file. One that can't be read fails later, when it is decoded."""
    try:
        status = os.stat(path)
    except OSError:  # such as a broken link
        return ImageFile(name, path, 0)
    if not stat.S_ISREG(status.st_mode):  # a pipe or a socket would never end
        return None
    return ImageFile(name, path, status.st_size, changed=status.st_mtime_ns)


def _listed(labels: str, root: Path, extra: Path | None, passed: Passed) -> tuple[tuple[str, ...], dict[str, FileList]]:
    """Classes and files of each part, from a table of labels.

    The table's column `split` says which part an image is of, if there is one. Else, if root has train/ and test/ or
    val/, images in test/ and val/ belong to those parts. Without a label these are left out. All other images are
    training images, or unlabelled.
    """
    table = Path(labels).expanduser().absolute()
    table = table if table.is_file() else root / labels
    if not table.is_file():
        raise InputError(f"dataset.labels: there is no file {Path(labels).expanduser().absolute()} or {table}")
    files = {os.path.normpath(file.path): file for file in list_images(root, extra, passed)}
    try:
        names, split_of = _read_labels(table, root, files.keys())
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: is no csv file in UTF-8 ({error}); expected lines of path,label") from error
    classes = tuple(sorted(set(names.values())))
    number = {name: k for k, name in enumerate(classes)}
    folders = split_folders(root, extra) if _named(root, "train") else {}
    split_of_folder = {folder.name: split for split, folder in folders.items()}
    held_out = [split for split in ("test", "val") if split in {*folders, *split_of.values()}]
    part_of = {"train": "train"} | dict(zip(held_out, ("test", "validation"), strict=False))
    parts = {part: FileList() for part in (*part_of.values(), "unlabelled")}
    for path, file in files.items():
        part = part_of[split_of.get(path) or split_of_folder.get(file.name.split("/")[0], "train")]
        if path in names:
            parts[part].append(file._replace(label=number[names[path]]))
        elif part == "train":
            parts["unlabelled"].append(file)
        else:
            passed[f"image of the {part} part without a label in {table.name}"] += 1
    for part in part_of.values():
        if not parts[part]:
            raise InputError(f"{table}: lists no images of the {part} part below {root}")
    if not parts["unlabelled"]:
        del parts["unlabelled"]
    return classes, parts


def _read_labels(table: Path, root: Path, known: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Path -> label, of the lines that have a label, and path -> split, of those that have a split.

    Paths in the table are relative to root or to the table itself.

    Raises:
        InputError: a line has less than two columns, names a file that is no image below root or was named before, or
            has a split that is none.
    """
    names, splits, path_of = dict[str, str](), dict[str, str](), {composed(path): path for path in known}
    columns: tuple[int, ...] = (0, 1)
    with table.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.reader(stream)
        for row in rows:
            cells = [cell.strip() for cell in row]
            where = f"{table}, line {rows.line_num}"
            if not any(cells):
                continue
            if not names and {"path", "label"} <= {cell.lower() for cell in cells}:
                header = [cell.lower() for cell in cells]
                columns = tuple(header.index(name) for name in ("path", "label", "split") if name in header)
                continue
            if len(cells) <= max(columns):
                raise InputError(f"{where}: expected path,label, found {','.join(row)!r}")
            file, label, *split = (cells[k] for k in columns)
            candidates = [composed(os.path.normpath(top / file)) for top in (root, table.parent)]
            path = next((path_of[name] for name in candidates if name in path_of), None)
            if path is None:
                raise InputError(f"{where}: {file} is no image below dataset.root={root}")
            if path in names:
                raise InputError(f"{where}: {file} is listed twice")
            if label:
                names[path] = label
            if any(split):
                splits[path] = _split_called(split[0], where)
    if not names:
        raise InputError(f"{table}: lists no labels; expected lines of path,label")
    return names, splits


def _split_called(name: str, where: str) -> str:
    found = next((split for split, names in SPLITS.items() if name.lower() in names), None)
    if found is None:
        choices = ", ".join(name for names in SPLITS.values() for name in names)
        raise InputError(f"{where}: no split is called {name!r}; choose from: {choices}")
    return found
