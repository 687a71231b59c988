"""A table of labels for the images of a folder: `dataset.labels=FILE.csv`."""

import csv
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from fasthebb_cli.data.files import FileList, composed, read_list
from fasthebb_cli.data.walk import SPLITS, Passed, list_images, named, split_folders
from fasthebb_cli.errors import InputError

SHOWN = 80  # characters of a line, in a message
COLUMNS = ("path", "label", "split")
CALLED = {name for names in SPLITS.values() for name in names}  # what splits are called


def listed_labels(
    labels: str, root: Path, extra: Path | None, passed: Passed
) -> tuple[tuple[str, ...], dict[str, FileList], tuple[str, ...]]:
    """Classes, files of each part and lines to warn of, from a table of labels.

    The table's column `split` says which part an image is of, if there is one. Else, if root has train/ and test/ or
    val/, images in test/ and val/ belong to those parts. Without a label these are left out. All other images are
    training images, or unlabelled.
    """
    table = Path(labels).expanduser().absolute()
    table = table if table.is_file() else root / labels
    if not table.is_file():
        raise InputError(f"dataset.labels: there is no file {Path(labels).expanduser().absolute()} or {table}")
    files = {os.path.normpath(file.path): file for file in list_images(root, extra, passed)}
    names, split_of = _read_labels(table, root, files.keys())
    classes = tuple(sorted(set(names.values())))
    number = {name: k for k, name in enumerate(classes)}
    folders = split_folders(root, extra) if named(root, "train") else {}
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
        if not parts[part] and (part != "train" or not held_out):  # else a trained network is measured on the others
            unlabelled = passed[f"image of the {part} part without a label in {table.name}"]
            with_label = f" with a label ({unlabelled:,} have none)" if unlabelled else ""
            raise InputError(f"{table}: lists no images of the {part} part{with_label} below {root}")
    if not parts["unlabelled"]:
        del parts["unlabelled"]
    unsplit = len(names.keys() - split_of.keys()) if split_of else 0
    told = f"{table.name}: {unsplit:,} images with a label have no split, and are training images"
    return classes, parts, (told,) if unsplit else ()


def _read_labels(table: Path, root: Path, known: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Path -> label, of the lines that have a label, and path -> split, of those that have a split.

    Paths in the table are relative to root or to the table itself.

    Raises:
        InputError: a line has too few or too many columns, names a file that is no image below root or was named
            before, or has a split that is none.
    """
    names, splits, path_of = dict[str, str](), dict[str, str](), {composed(path): path for path in known}
    columns: tuple[int, ...] | None = None  # of path, label and split, as a header says
    header: list[str] = []
    unread: dict[str, set[str]] = {}  # columns that are not read and name splits so far -> what is in them
    for where, cells in _lines(table):
        if not names and {"path", "label"} <= {cell.lower() for cell in cells}:
            header = [cell.lower() for cell in cells]
            for name in sorted({*header}):
                if header.count(name) > 1 and name in COLUMNS:
                    raise InputError(f"{where}: has {header.count(name)} columns called {name}; keep one")
            columns = tuple(header.index(name) for name in COLUMNS if name in header)
            if "split" not in header:
                unread = {name: set() for name in header if name not in COLUMNS}
            continue
        if columns is None and any(cells[2:]):
            raise InputError(f"{where}: has {len(cells)} columns; say which is which in a first line: path,label,split")
        if len(cells) <= max(columns or (0, 1)):
            raise InputError(f"{where}: expected path,label, found {_shown(','.join(cells))}")
        file, label, *split = (cells[k] for k in columns or (0, 1))
        candidates = [composed(os.path.normpath(top / file)) for top in (root, table.parent)]
        path = next((path_of[name] for name in candidates if name in path_of), None)
        if path is None:
            header_wanted = "" if columns or names else "; a header would have to be path,label or path,label,split"
            raise InputError(f"{where}: {_shown(file)} is no image below dataset.root={root}{header_wanted}")
        if path in names:
            raise InputError(f"{where}: {file} is listed twice")
        for name in list(unread):
            unread[name].add(cells[header.index(name)].lower() if header.index(name) < len(cells) else "")
            if not unread[name] <= CALLED:
                del unread[name]
        if label:
            names[path] = label
        if any(split):
            splits[path] = _split_called(split[0], where)
    if split_named := [name for name, values in unread.items() if len(values) > 1]:
        raise InputError(f"{table}: the column {_shown(split_named[0])} names splits; call it split, or remove it")
    if not names:
        raise InputError(f"{table}: lists no labels; expected lines of path,label")
    return names, splits


def _lines(table: Path) -> Iterator[tuple[str, list[str]]]:
    """The place and the cells of every line that is not empty.

    Raises:
        InputError: the file is no csv in UTF-8, a cell goes on in the next line, or has a character that no name has.
    """
    text = read_list("dataset.labels", table, "lines of path,label")
    rows, last = csv.reader(io.StringIO(text, newline="")), 0
    try:
        for row in rows:
            where, lines, last = f"{table}, line {last + 1}", rows.line_num - last, rows.line_num
            if lines > 1:
                raise InputError(f"{where}: a quote opens in it and does not close")
            if "\0" in "".join(row):
                raise InputError(f"{where}: has a null character in it")
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield where, cells
    except csv.Error as error:
        raise InputError(f"{table}, line {last + 1}: is no csv ({error}); expected path,label") from error


def _shown(text: str) -> str:
    return repr(text) if len(text) <= SHOWN else f"{text[:SHOWN]!r}..."


def _split_called(name: str, where: str) -> str:
    found = next((split for split, names in SPLITS.items() if name.lower() in names), None)
    if found is None:
        choices = ", ".join(name for names in SPLITS.values() for name in names)
        raise InputError(f"{where}: no split is called {name!r}; choose from: {choices}")
    return found
