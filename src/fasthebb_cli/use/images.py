"""Any folder of photographs as batches for a trained network, prepared as its training images were.

Files that can't be read are left out and named. Knows nothing of labels: a photograph is a path and its pixels.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fasthebb.model_file import ModelCard
from fasthebb_cli.data.files import FileList, ImageFile
from fasthebb_cli.data.folders import SUFFIXES, list_images
from fasthebb_cli.data.loading import read_ahead
from fasthebb_cli.data.source import decode_all
from fasthebb_cli.data.transforms import to_float
from fasthebb_cli.errors import InputError

CHANNELS = 3  # of a decoded file


class Decoded(NamedTuple):
    """Images uint8 (n, 3, S, S) of those `files` of a batch that can be read, and one line for each of the rest."""

    images: Tensor
    files: list[int]
    problems: list[str]


class Photographs:
    """Image files of which some may be damaged; see `data.loading.Readable`."""

    def __init__(self, paths: Sequence[str], size: int) -> None:
        self.paths, self.size = paths, size

    def read(self, indices: Tensor) -> Decoded:
        files = indices.tolist()
        try:
            return Decoded(decode_all([self.paths[k] for k in files], self.size), files, [])
        except InputError:
            pass  # at least one is damaged: find out which
        images, kept, problems = [torch.empty(0, CHANNELS, self.size, self.size, dtype=torch.uint8)], [], []
        for k in files:
            try:
                images.append(decode_all([self.paths[k]], self.size))
                kept.append(k)
            except InputError as error:
                problems.append(str(error))
        return Decoded(torch.cat(images), kept, problems)


def find_images(place: Path) -> FileList:
    """All images below a folder in sorted order, or the one file.

    Raises:
        InputError: there is no such place, it can't be read, or it holds no images.
    """
    place = place.expanduser()
    if os.path.isfile(place):
        return FileList([ImageFile(place.name, str(place), place.stat().st_size)])
    if not os.path.isdir(place):  # unlike Path.is_dir, no error for a name that is too long
        raise InputError(f"{place}: there is no such folder or image file")
    files = FileList(list_images(place))
    if not files:
        raise InputError(f"{place}: no images in this folder; looked for {', '.join(SUFFIXES)}")
    return files


def decoded(files: Sequence[ImageFile], size: int, batch_size: int, workers: int, *, pin: bool) -> Iterator[Decoded]:
    """All files in batches, decoded ahead by worker processes if there are any.

    Raises:
        RunError: a worker process died.
    """
    source = Photographs([file.path for file in files], size)
    chunks = list(torch.split(torch.arange(len(files)), batch_size))
    if workers > 0:
        return read_ahead(source, chunks, min(workers, len(chunks)), pin=pin)
    return map(source.read, chunks)


def load_images(paths: Sequence[str | Path], card: ModelCard) -> Tensor:
    """Image files as the network of the card takes them: float32 (B, 3, S, S), decoded, turned, resized, cropped and
    normalised as its training images were.

    Raises:
        InputError: a file can't be read as an image, or the network takes no colour images.
    """
    check_channels(card)
    return to_float(decode_all([str(path) for path in paths], card.size), *statistics(card))


def statistics(card: ModelCard) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (3,) that images are normalised with."""
    return torch.tensor(card.mean), torch.tensor(card.std)


def check_channels(card: ModelCard) -> None:
    if card.channels != CHANNELS:
        raise InputError(f"the model takes images of {card.channels} channels, and image files are read as {CHANNELS}")
