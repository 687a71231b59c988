"""What the function of a data set returns: images and labels before they are split, and how to make one from arrays or
from files. A user's own data set (`dataset.name=my_package.module:function`) returns the same.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fasthebb_cli.compute import processes
from fasthebb_cli.data.files import FileList, ImageFile, Listing
from fasthebb_cli.data.source import (
    MEMORY_LIMIT,
    ImageFiles,
    ImageSource,
    InMemory,
    decode_all,
    find_damaged,
    read_bytes,
)
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import DatasetConfig


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
        files: what the images are decoded from, if they are files.
        left_out: a line for each damaged file that was left out (`on_bad_image=skip`).
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
    files: FileList | None = None
    left_out: tuple[str, ...] = ()


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
    indices = consecutive({part: len(part_labels) for part, (_, part_labels) in parts.items()})
    digest = digest_of([*_sizes(indices), pixels.numpy().data, labels.numpy().data, *map(str.encode, classes)])
    return Collection(InMemory(pixels), labels, classes, digest=digest, table=table, **indices)


def from_files(
    parts: Mapping[str, Iterable[ImageFile]],
    classes: tuple[str, ...],
    config: DatasetConfig,
    *,
    read: Callable[[str], bytes] = read_bytes,
    table: Table | None = None,
) -> Collection:
    """Collection of image files, decoded into memory now if `config.in_memory` says so or, null, if they fit.

    With `config.on_bad_image=skip` files that can't be decoded are left out as if they were not there: each is decoded
    once for that, before anything is split or numbered. Of several processes, which all call this, the first does it.

    Args:
        parts: files of "train" and, where there are any, "test", "validation" and "unlabelled". Of millions, give
            iterators: a list of them would be in memory beside the one that is made here.
        read: gives the bytes of a path, for files inside an archive.
    """
    files, counts = FileList(), dict.fromkeys(parts, 0)
    for part, part_files in parts.items():
        for file in part_files:
            files.append(file)
            counts[part] += 1
    damaged: dict[int, str] | None = {} if config.on_bad_image == "skip" else None
    source = source_of(files.paths, config, read, damaged)
    indices = consecutive(counts)
    if damaged:
        readable = torch.tensor([i not in damaged for i in range(len(files))])
        check_classes(files.labels()[indices["train"]], readable[indices["train"]], classes)
        counts = {part: int(readable[chosen].sum()) for part, chosen in indices.items()}
        indices = consecutive(counts)
        kept = readable.nonzero().flatten()
        files = FileList(file for i, file in enumerate(files) if i not in damaged)
        pixels = source.pixels if isinstance(source, InMemory) else None
        source = ImageFiles(files.paths, config.size, read) if pixels is None else InMemory(pixels[kept])
    digest = files_digest(counts, config.size, classes, map(listed, files))
    lost = tuple(damaged[i] for i in sorted(damaged)) if damaged else ()
    return Collection(
        source, files.labels(), classes, digest=digest, table=table, files=files, left_out=lost, **indices
    )


def source_of(
    paths: Listing[str],
    config: DatasetConfig,
    read: Callable[[str], bytes] = read_bytes,
    damaged: dict[int, str] | None = None,
) -> InMemory | ImageFiles:
    """Encoded images in memory, if they shall or may be there, or decoded when they are read.

    Args:
        damaged: see `decode_all`.
    """
    if in_memory(config, len(paths), ImageFiles.channels):
        return InMemory(decode_all(paths, config.size, read, damaged))
    source = ImageFiles(paths, config.size, read)
    if damaged is not None:
        damaged |= processes.from_first(lambda: find_damaged(source))
    return source


def in_memory(config: DatasetConfig, images: int, channels: int) -> bool:
    """Whether pixels are kept in memory: `config.in_memory`, or, null, if they fit."""
    fits = images * channels * config.size**2 <= MEMORY_LIMIT
    return fits if config.in_memory is None else config.in_memory


def check_classes(labels: Tensor, readable: Tensor, classes: tuple[str, ...]) -> None:
    """Raises:
    InputError: no training image of a class can be read.
    """
    kept = set(labels[readable].unique().tolist())
    if not kept:
        raise InputError("not one of the training images can be read")
    for label in labels.unique().tolist():
        if label not in kept:
            raise InputError(f"class {classes[label]}: not one of its training images can be read; mend or remove them")


def listed(file: ImageFile) -> bytes:
    """A file's line in the digest of its set."""
    return os.fsencode(f"{file.name}\0{file.length}\0{file.label}\n")


def files_digest(counts: Mapping[str, int], size: int, classes: tuple[str, ...], lines: Iterable[bytes]) -> str:
    """See `Dataset.digest`; counts of the parts in order, lines as of `listed`."""
    sizes = [f"{part} {count}\n".encode() for part, count in counts.items()]
    return digest_of(chain(sizes, [str(size).encode()], map(os.fsencode, classes), lines))


def consecutive(counts: Mapping[str, int]) -> dict[str, Any]:
    """Indices of parts in a row, of half the usual size: they are kept beside those of the split."""
    ends = list(accumulate(counts.values()))
    return {
        part: torch.arange(end - count, end, dtype=torch.int32)
        for (part, count), end in zip(counts.items(), ends, strict=True)
    }


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
