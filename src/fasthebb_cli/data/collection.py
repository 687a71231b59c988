"""What the function of a data set returns: images and labels before they are split, and how to make one from arrays or
from files. A user's own data set (`dataset.name=my_package.module:function`) returns the same.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fasthebb_cli.config import DatasetConfig
from fasthebb_cli.data.source import MEMORY_LIMIT, ImageFiles, ImageSource, InMemory, decode_all
from fasthebb_cli.errors import InputError


class Table(NamedTuple):
    """Training images that the papers use, and how many the whole set has; a smaller copy keeps the proportion."""

    train: int
    total: int


def _none() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Collection:
    """Images and labels with the parts that they come in.

    Args:
        labels: int64 (N,), -1 where there is none.
        classes: name of every label; empty if there are no labels.
        train: indices of the training images, which are split further.
        test, validation: those that come with the set; None: taken from `train`.
        unlabelled: more images for pre-training only.
        digest: see `Dataset`.
    """

    source: ImageSource
    labels: Tensor
    classes: tuple[str, ...]
    train: Tensor
    digest: str
    test: Tensor | None = None
    validation: Tensor | None = None
    unlabelled: Tensor = field(default_factory=_none)
    table: Table | None = None


class ImageFile(NamedTuple):
    """A file that is still to be decoded; `name` is its path relative to the root of the set, `length` its bytes."""

    name: str
    path: str
    length: int
    label: int = -1


def from_arrays(
    parts: Mapping[str, tuple[Tensor, Tensor]], classes: tuple[str, ...], size: int, table: Table | None = None
) -> Collection:
    """Collection of uint8 arrays.

    Args:
        parts: images (n, H, W) or (n, C, H, W) and labels (n,) of "train" and, where the set has them, "test" and
            "unlabelled".
    """
    pixels = torch.cat([resized(images, size) for images, _ in parts.values()])
    labels = torch.cat([part_labels.to(torch.int64) for _, part_labels in parts.values()])
    indices = _consecutive({part: len(part_labels) for part, (_, part_labels) in parts.items()})
    digest = digest_of([*_sizes(indices), pixels.numpy().data, labels.numpy().data, *map(str.encode, classes)])
    return Collection(InMemory(pixels), labels, classes, digest=digest, table=table, **indices)


def from_files(
    parts: Mapping[str, list[ImageFile]],
    classes: tuple[str, ...],
    config: DatasetConfig,
    *,
    read: Callable[[str], bytes] | None = None,
    table: Table | None = None,
) -> Collection:
    """Collection of image files, decoded into memory now if `config.in_memory` says so or, null, if they fit.

    Args:
        parts: files of "train" and, where there are any, "test", "validation" and "unlabelled".
        read: gives the bytes of a path, for files inside an archive, which are always decoded now.
    """
    files = [file for part in parts.values() for file in part]
    paths = [file.path for file in files]
    indices = _consecutive({part: len(part_files) for part, part_files in parts.items()})
    fits = len(files) * ImageFiles.channels * config.size**2 <= MEMORY_LIMIT
    source: ImageSource
    if read is not None:
        source = InMemory(decode_all(paths, config.size, read))
    elif config.in_memory or (config.in_memory is None and fits):
        source = InMemory(decode_all(paths, config.size))
    else:
        source = ImageFiles(paths, config.size)
    listing = (os.fsencode(f"{file.name}\0{file.length}\0{file.label}\n") for file in files)
    digest = digest_of([*_sizes(indices), str(config.size).encode(), *map(os.fsencode, classes), *listing])
    labels = torch.tensor([file.label for file in files], dtype=torch.int64)
    return Collection(source, labels, classes, digest=digest, table=table, **indices)


def _consecutive(counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Indices of parts that lie one after the other."""
    parts = torch.split(torch.arange(sum(counts.values())), list(counts.values()))
    return dict(zip(counts, parts, strict=True))


def _sizes(indices: Mapping[str, Tensor]) -> list[bytes]:
    return [f"{part} {len(chosen)}\n".encode() for part, chosen in indices.items()]


def digest_of(parts: Iterable[bytes | memoryview]) -> str:
    """32 hexadecimal digits of the parts, each with its length."""
    hashed = blake2b(digest_size=16)
    for part in parts:
        hashed.update(f"{memoryview(part).nbytes} ".encode())
        hashed.update(part)
    return hashed.hexdigest()


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 (n, H, W) or (n, C, H, W) as uint8 (n, 3 or C, size, size): greys repeated, bilinear with antialiasing."""
    if images.dim() == 3:
        images = images.unsqueeze(1)
    if images.shape[-2:] != (size, size):
        parts = []
        for part in torch.split(images, 4096):  # floats of a large set would not fit
            scaled = interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
            parts.append(scaled.round().clamp(0, 255).to(torch.uint8))
        images = torch.cat(parts)
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    return images.contiguous()


def root_of(config: DatasetConfig) -> Path:
    """The absolute dataset.root.

    Raises:
        InputError: it is not set.
    """
    if config.root is None:
        raise InputError(
            f"dataset.root has no value: set it to the folder of the images, as in dataset.root=/data/{config.name}"
        )
    return Path(config.root).expanduser().absolute()


def missing(config: DatasetConfig, what: str, *, download: bool) -> InputError:
    """The error for data that are not there: what was looked for, where, and how to get it."""
    get = "let it be downloaded with dataset.download=true, or say" if download else "say"
    return InputError(
        f"dataset {config.name}: found no {what} in {root_of(config)}; "
        f"{get} where it lies with dataset.root=FOLDER or the environment variable FASTHEBB_DATA=FOLDER"
    )
