"""Some of a data set's classes: `dataset.classes` names a file that lists them, as ImageNet-100 is published."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fasthebb_cli.data.files import ImageFile, composed, read_list
from fasthebb_cli.errors import InputError


def listed_classes(path: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes that a file names, in the order of the data set. A line is a name, or begins with one.

    Raises:
        InputError: the file can't be read, names less than two classes, or one that there isn't.
    """
    file = Path(path).expanduser()
    lines = read_list("dataset.classes", file, "a class's name in each line").splitlines()
    known = {composed(name): name for name in classes}
    named = set[str]()
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        name = known.get(composed(line)) or known.get(composed(_first(line)))
        if name is None:
            shown = ", ".join(classes[:10]) + (f" and {len(classes) - 10:,} more" if len(classes) > 10 else "")
            raise InputError(f"dataset.classes: {file}, line {number}: no class {line!r}; there are: {shown or 'none'}")
        named.add(name)
    if len(named) < 2:
        raise InputError(f"dataset.classes: {file} names {len(named)} of the classes, and at least two are needed")
    return tuple(name for name in classes if name in named)


def _first(line: str) -> str:
    """What stands before a tab, a comma or two spaces, or the synset of WordNet before one space (n01440764 tench)."""
    found = re.match(r"n\d{8}(?=\s)", line)
    return found[0] if found else re.split(r"\t|,|\s{2,}", line)[0].strip()


def files_of_classes(files: Iterable[ImageFile], number: Mapping[int, int]) -> Iterator[ImageFile]:
    """Files of some classes, with the new numbers of these, and those without a label."""
    for file in files:
        if file.label < 0:
            yield file
        elif file.label in number:
            yield file._replace(label=number[file.label])
