"""A folder of photographs as batches for a trained network, prepared like its training images.

Files that can't be read are named and left out. There are no labels here: a photograph is a path and its pixels.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fasthebb.card import ModelCard
from fasthebb_cli.data.files import FileList, ImageFile
from fasthebb_cli.data.loading import read_ahead
from fasthebb_cli.data.source import Fit, decode_all
from fasthebb_cli.data.transforms import to_float
from fasthebb_cli.data.walk import SUFFIXES, Passed, list_images, passed_notes
from fasthebb_cli.errors import InputError

CHANNELS = 3  # of a decoded image file


class Decoded(NamedTuple):
    """Images uint8 (n, 3, S, S) of the `files` of a batch that can be read, and an error for each other file."""

    images: Tensor
    files: list[int]
    problems: list[str]


class Photographs:
    """Image files, some of which may be damaged; a `data.loading.Readable`."""

    def __init__(self, paths: Sequence[str], fit: Fit) -> None:
        self.paths, self.fit = paths, fit

    def read(self, indices: Tensor) -> Decoded:
        files, damaged = indices.tolist(), dict[int, str]()
        images = decode_all([self.paths[k] for k in files], self.fit, damaged=damaged)
        kept = [place for place in range(len(files)) if place not in damaged]
        return Decoded(images[kept], [files[place] for place in kept], [damaged[place] for place in sorted(damaged)])


def find_images(place: Path, warn: Callable[[str], None] = lambda _: None) -> FileList:
    """All images below a folder in sorted order, or the one file.

    Args:
        warn: is called where the folder holds pictures that are not read.

    Raises:
        InputError: the place is missing or can't be read, or it holds no images.
    """
    place = place.expanduser()
    if os.path.isfile(place):
        return FileList([ImageFile(place.name, str(place), place.stat().st_size)])
    if not os.path.isdir(place):  # Path.is_dir would raise for a name that is too long
        raise InputError(f"{place}: there is no such folder or image file")
    passed: Passed = Counter()
    files = FileList(list_images(place, None, passed))
    for line in passed_notes(passed):
        warn(line)
    if not files:
        raise InputError(f"{place}: no images in this folder; looked for {', '.join(SUFFIXES)}")
    return files


def decoded(files: Sequence[ImageFile], fit: Fit, batch_size: int, workers: int, *, pin: bool) -> Iterator[Decoded]:
    """All files in batches. Worker processes, if there are any, decode ahead.

    Raises:
        RunError: a worker process died.
    """
    source = Photographs([file.path for file in files], fit)
    chunks = list(torch.split(torch.arange(len(files)), batch_size))
    if workers > 0:
        return read_ahead(source, chunks, min(workers, len(chunks)), pin=pin)
    return map(source.read, chunks)


def load_images(paths: str | Path | Sequence[str | Path], card: ModelCard) -> Tensor:
    """Image files, or one of them, as input for the network of the card: float32 (B, 3, S, S).

    They are decoded, turned, made square and normalised like its training images.

    Raises:
        InputError: a file can't be read as an image, or the network takes other images than colour images.
    """
    check_channels(card)
    several = [paths] if isinstance(paths, str | Path) else paths
    return to_float(decode_all([str(path) for path in several], fit_of(card)), *statistics(card))


def fit_of(card: ModelCard) -> Fit:
    """How the network's training images were made square, and so all others are."""
    return Fit(card.size, card.fit, card.background)


def statistics(card: ModelCard) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (3,), which normalise the images."""
    return torch.tensor(card.mean), torch.tensor(card.std)


def check_channels(card: ModelCard) -> None:
    if card.channels != CHANNELS:
        raise InputError(f"the model takes images of {card.channels} channels, and image files are read as {CHANNELS}")
