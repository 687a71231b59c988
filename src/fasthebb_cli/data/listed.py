"""Published lists of the images whose labels may be read, as those of 1 % of ImageNet or of the folds of STL-10.

A line is an image's path below dataset.root, its name without folders, or its number among the training images of the
data set as it comes, counted from 0.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fasthebb_cli.data.collection import Collection
from fasthebb_cli.data.files import composed, read_list
from fasthebb_cli.errors import InputError

TWICE = -1  # in place of the index of a name that several images have


def listed_images(path: str, collection: Collection, *, is_part: bool) -> Tensor:
    """The training images that a file lists, as sorted indices (n,).

    Args:
        is_part: the collection has some of the data set's classes only.

    Raises:
        InputError: it can't be read, or a line is no training image, or several, or was there before.
    """
    file = Path(path).expanduser()
    lines = list(_lines(file))
    train = collection.train.long()
    if all(text.isdecimal() and text.isascii() for _, text in lines):
        if is_part:
            raise InputError(
                f"label_subset: {file} lists numbers, which count the images of all classes; with dataset.classes, "
                "list names"
            )
        found = _numbered(file, lines, len(train))
        return train[torch.tensor(found)].sort().values
    if collection.files is None:
        raise InputError(f"label_subset: {file} lists names, and these images have none; list their numbers instead")
    numbers = dict[str, int]()
    for index in train.tolist():
        name = collection.files.name_and_label(index)[0]
        base = os.path.basename(name)
        numbers[composed(name)] = index
        if base != name:
            numbers[composed(base)] = TWICE if composed(base) in numbers else index
    chosen = set[int]()
    for number, text in lines:
        index = numbers.get(composed(os.path.normpath(text)))
        if index is None or index == TWICE:
            problem = "is no training image" if index is None else "is the name of several images; give their paths"
            if index is None and text.isdecimal():
                other, what = next((n, t) for n, t in lines if not (t.isdecimal() and t.isascii()))
                number, text, problem = other, what, "is no number, as others are; list numbers, or names or paths"
            raise InputError(f"label_subset: {file}, line {number}: {text} {problem}")
        if index in chosen:
            raise InputError(f"label_subset: {file}, line {number}: {text} is listed twice")
        chosen.add(index)
    return torch.tensor(sorted(chosen))


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that isn't empty; numbers in one line count as lines.

    Raises:
        InputError: there are none, or the file can't be read.
    """
    text = read_list("label_subset", file, "an image in each line")
    several = text.replace(",", " ").split()
    if several and all(word.isdecimal() and word.isascii() for word in several):
        yield from enumerate(several, 1)
        return
    found = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not found:
        raise InputError(f"label_subset: {file} lists no images")
    yield from found


def _numbered(file: Path, lines: list[tuple[int, str]], total: int) -> list[int]:
    numbers = dict[int, None]()  # in order
    for _, text in lines:
        number = int(text[:19])  # longer ones are too large, too, and Python refuses very long ones
        if number >= total:
            raise InputError(f"label_subset: {file}: there is no image {text[:19]}; the numbers are 0 to {total - 1}")
        if number in numbers:
            raise InputError(f"label_subset: {file}: {number} is listed twice")
        numbers[number] = None
    return list(numbers)
