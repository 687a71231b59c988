"""Your own images: `dataset=image_folder dataset.root=FOLDER`, in one of these layouts.

train/<class>/..  test/<class>/..   or val/ instead of test/; with both, val/ is the validation set
<class>/..                          split by the seed into 60 % training, 20 % validation, 20 % test images
a.png b.png ..                      a flat folder: no labels, for pre-training only
any, with dataset.labels=FILE.csv   lines of path,label; images that are not listed have no label

Functions here yield images one by one; only `from_files` makes a list, which may have millions of entries.
"""

import csv
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from fasthebb_cli.data.collection import Collection, from_files, root_of
from fasthebb_cli.data.files import FileList, ImageFile
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import DatasetConfig

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


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
    parts: Mapping[str, Iterable[ImageFile]]
    if config.labels is not None:
        classes, parts = _listed(config.labels, root, extra)
    else:
        classes, parts = _layout(root, extra)
    if extra is not None:
        problem = f"dataset.unlabelled: no images in {extra}; looked for {', '.join(SUFFIXES)}"
        more = (file._replace(name=f"unlabelled/{file.name}") for file in _at_least_one(list_images(extra), problem))
        parts = {**parts, "unlabelled": chain(more, parts.get("unlabelled", ()))}
    return from_files(parts, classes, config)


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


def _layout(root: Path, extra: Path | None) -> tuple[tuple[str, ...], dict[str, Iterable[ImageFile]]]:
    """Classes and files of each part, by the names of the folders."""
    base = root / "train" if (root / "train").is_dir() else root
    names = class_folders(base, extra)
    if not names:
        problem = f"dataset.root: no images in {base}; looked for {', '.join(SUFFIXES)}"
        return (), {"train": _at_least_one(list_images(base, extra), problem)}
    beside = sorted(p for p in base.iterdir() if _is_image(p.name) and p.is_file())
    if beside:
        raise InputError(
            f"{beside[0]}: lies beside class folders; move it into one, or list labels with dataset.labels"
        )
    parts: dict[str, Iterable[ImageFile]] = {"train": images_by_class(base, names, root, extra)}
    if base != root:
        held_out = [part for part in ("test", "val") if (root / part).is_dir()]
        for part, folder in zip(("test", "validation"), held_out, strict=False):
            parts[part] = images_by_class(root / folder, names, root, extra)
    return names, parts


def class_folders(base: Path, extra: Path | None = None) -> tuple[str, ...]:
    """Names of the subfolders, sorted; empty if none of them has images."""
    folders = [p for p in base.iterdir() if p.is_dir() and not p.name.startswith(".") and p != extra]
    return tuple(sorted(p.name for p in folders)) if any(_has_images(p) for p in folders) else ()


def _has_images(folder: Path) -> bool:
    return any(_is_image(name) for _, _, names in os.walk(folder, followlinks=True) for name in names)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def images_by_class(base: Path, classes: tuple[str, ...], root: Path, extra: Path | None = None) -> Iterator[ImageFile]:
    """Images in the class folders of `base` with their labels; names are relative to `root`.

    Raises:
        InputError: a class folder is empty or not among the classes.
    """
    number = {name: k for k, name in enumerate(classes)}
    present = {p.name for p in base.iterdir() if p.is_dir() and not p.name.startswith(".") and p != extra}
    unknown = sorted(present - number.keys())
    if unknown:
        raise InputError(f"{base / unknown[0]}: there is no class {unknown[0]!r} among the training images")
    if not present:
        raise InputError(f"{base}: has no class folders with images")
    for name in sorted(present):
        prefix, problem = (base / name).relative_to(root).as_posix(), "the class folder has no images"
        for file in _at_least_one(list_images(base / name), f"{base / name}: {problem}; fill it or remove it"):
            yield file._replace(name=f"{prefix}/{file.name}", label=number[name])


def list_images(top: Path, extra: Path | None = None) -> Iterator[ImageFile]:
    """All images in a folder and its subfolders, sorted by name, without hidden ones and those in the folder `extra`.

    Raises:
        InputError: a folder can't be read.
    """
    return _images_below(os.fspath(top), "", None if extra is None else os.fspath(extra), set())


def _images_below(folder: str, prefix: str, extra: str | None, seen: set[str]) -> Iterator[ImageFile]:
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
            continue
        if name.endswith("/"):
            if path[:-1] != extra:
                yield from _images_below(path[:-1], prefix + name, extra, seen)
        elif _is_image(name):
            yield from _image(prefix + name, path)


def _image(name: str, path: str) -> Iterator[ImageFile]:
    """Yields the file, or nothing if it is no regular file. One that can't be read fails later, when it is decoded."""
    try:
        status = os.stat(path)
    except OSError:  # such as a broken link
        yield ImageFile(name, path, 0)
        return
    if stat.S_ISREG(status.st_mode):  # a pipe or a socket would never end
        yield ImageFile(name, path, status.st_size, changed=status.st_mtime_ns)


def _listed(labels: str, root: Path, extra: Path | None) -> tuple[tuple[str, ...], dict[str, FileList]]:
    """Classes and files of each part, from a table of labels.

    If root has train/ and test/ or val/, images in test/ and val/ belong to those parts; without a label they are left
    out. All other images are training images, or unlabelled.
    """
    table = Path(labels).expanduser().absolute()
    table = table if table.is_file() else root / labels
    if not table.is_file():
        raise InputError(f"dataset.labels: there is no file {Path(labels).expanduser().absolute()} or {table}")
    files = {os.path.normpath(file.path): file for file in list_images(root, extra)}
    try:
        names = _read_labels(table, root, files.keys())
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: is no csv file in UTF-8 ({error}); expected lines of path,label") from error
    classes = tuple(sorted(set(names.values())))
    number = {name: k for k, name in enumerate(classes)}
    held_out = [p for p in ("test", "val") if (root / p).is_dir()] if (root / "train").is_dir() else []
    part_of = dict(zip(held_out, ("test", "validation"), strict=False))
    parts = {part: FileList() for part in ("train", *part_of.values(), "unlabelled")}
    for path, file in files.items():
        part = part_of.get(file.name.split("/")[0], "train")
        if path in names:
            parts[part].append(file._replace(label=number[names[path]]))
        elif part == "train":
            parts["unlabelled"].append(file)
    for part in ("train", *part_of.values()):
        if not parts[part]:
            raise InputError(f"{table}: lists no images of the {part} part below {root}")
    if not parts["unlabelled"]:
        del parts["unlabelled"]
    return classes, parts


def _read_labels(table: Path, root: Path, known: Iterable[str]) -> dict[str, str]:
    """Path -> label, of the lines that have a label. Paths in the table are relative to root or to the table itself.

    Raises:
        InputError: a line has less than two columns, or names a file that is no image below root or was named before.
    """
    known, names = set(known), dict[str, str]()
    columns = (0, 1)
    with table.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.reader(stream)
        for row in rows:
            cells = [cell.strip() for cell in row]
            where = f"{table}, line {rows.line_num}"
            if not any(cells):
                continue
            if not names and {"path", "label"} <= {cell.lower() for cell in cells}:
                header = [cell.lower() for cell in cells]
                columns = (header.index("path"), header.index("label"))
                continue
            if len(cells) <= max(columns):
                raise InputError(f"{where}: expected path,label, found {','.join(row)!r}")
            file, label = (cells[k] for k in columns)
            candidates = [os.path.normpath(top / file) for top in (root, table.parent)]
            path = next((path for path in candidates if path in known), None)
            if path is None:
                raise InputError(f"{where}: {file} is no image below dataset.root={root}")
            if path in names:
                raise InputError(f"{where}: {file} is listed twice")
            if label:
                names[path] = label
    if not names:
        raise InputError(f"{table}: lists no labels; expected lines of path,label")
    return names
