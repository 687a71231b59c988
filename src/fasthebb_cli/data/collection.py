"""A collection: images and labels before they are split, made from arrays or from files.

The function of every data set returns one, and so does a user's own (`dataset.name=my_package.module:function`).
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fasthebb_cli.compute import processes
from fasthebb_cli.data.classes import files_of_classes, listed_classes
from fasthebb_cli.data.contents import Digests, Unchanged, content_digests
from fasthebb_cli.data.digests import digest_of, files_digest, listing
from fasthebb_cli.data.files import FileList, ImageFile, Listing
from fasthebb_cli.data.source import (
    MEMORY_LIMIT,
    DecodedFiles,
    Fit,
    ImageFiles,
    ImageSource,
    InMemory,
    decode_all,
    find_damaged,
    read_bytes,
)
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import DatasetConfig

PARTS = ("train", "test", "validation", "unlabelled")
MOST_CHANNELS = 16  # of arrays; with more, the last dimension is mostly meant


class Table(NamedTuple):
    """Number of training images that the papers use, and of all that the data set has. A smaller copy of the data set
    uses the same proportion.
    """

    train: int
    total: int


def _none() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Collection:
    """Images and labels, with the parts that the data set comes in.

    Args:
        labels: int64 (N,); -1 for an image without a label.
        classes: name of every label; empty if there are no labels.
        train: indices of the training images, which will be split.
        digest: see `Dataset`.
        test, validation: indices, if the data set has such parts; None: they are taken from `train`.
        unlabelled: indices of further images, for pre-training only.
        table: see `Table`; None: no paper uses a part of the training images.
        files: the image files, if there are any.
        contents: a digest of what is in each, (N, WIDTH).
        left_out: one line for each damaged file that was left out (`on_bad_image=skip`).
        notes: lines to warn of.
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
    contents: Digests | None = None
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def from_arrays(
    parts: Mapping[str, tuple[Tensor, Tensor]], classes: tuple[str, ...], size: int, table: Table | None = None
) -> Collection:
    """A collection of uint8 arrays.

    Args:
        parts: images (n, H, W) or (n, C, H, W) and labels (n,), of "train" and, if there are any, "test" and
            "unlabelled".
        size: images are resized to size x size.

    Raises:
        ValueError: images are not uint8 of that shape, or labels are no integers, or as many as images.
    """
    for part, (images, part_labels) in parts.items():
        if images.dtype != torch.uint8 or images.dim() not in (3, 4):
            raise ValueError(f"images of {part} must be uint8 (n, C, H, W), not {images.dtype} {tuple(images.shape)}")
        if images.dim() == 4 and images.shape[1] > MOST_CHANNELS:
            raise ValueError(f"images of {part} must be (n, C, H, W), and {images.shape[1]} channels are too many")
        if part_labels.dtype.is_floating_point or tuple(part_labels.shape) != (len(images),):
            found = f"{part_labels.dtype} {tuple(part_labels.shape)}"
            raise ValueError(f"labels of {part} must be integers ({len(images)},), not {found}")
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
    """A collection of image files. Those of a split are decoded into memory if `in_memory` says so.

    With `config.on_bad_image=skip` files that can't be decoded are left out, as if they were not there. For this each
    file is decoded once, before images are numbered and split. All processes call this; the first one decodes.

    Args:
        parts: files of "train" and, if there are any, "test", "validation" and "unlabelled". For millions of files
            give iterators: lists would be in memory beside the one that is made here.
        read: path -> content of the file, for files inside an archive.
    """
    if config.classes is not None:
        chosen_classes = listed_classes(config.classes, classes)
        number = {classes.index(name): k for k, name in enumerate(chosen_classes)}
        classes, parts = (
            chosen_classes,
            {part: files_of_classes(part_files, number) for part, part_files in parts.items()},
        )
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
        source = ImageFiles(files.paths, fit_of(config), read) if pixels is None else InMemory(pixels[kept])
    place = f"{config.name} {config.root} {config.unlabelled}"
    contents = content_digests(files, place, read)
    if isinstance(source, ImageFiles | DecodedFiles) and read is read_bytes:  # they are read while a run goes on
        checked = ImageFiles(files.paths, fit_of(config), read, Unchanged(files, contents).check)
        if isinstance(source, DecodedFiles):
            source.files = checked
        else:
            source = checked
    digest = files_digest(counts, fit_of(config), classes, listing(files, contents))
    lost = tuple(damaged[i] for i in sorted(damaged)) if damaged else ()
    return Collection(
        source,
        files.labels(),
        classes,
        digest=digest,
        table=table,
        files=files,
        contents=contents,
        left_out=lost,
        **indices,
    )


def of_classes(collection: Collection, path: str | None) -> Collection:
    """Only the images of the classes that a file names, and those without a label; None: all.

    Raises:
        InputError: as `listed_classes`.
    """
    kept = collection.classes if path is None else listed_classes(path, collection.classes)
    if kept == collection.classes:
        return collection
    number = torch.full((len(collection.classes) + 1,), -1)  # the last is that of images without a label
    number[[collection.classes.index(name) for name in kept]] = torch.arange(len(kept))
    labels = number[collection.labels]

    def part(chosen: Tensor | None) -> Tensor | None:
        return None if chosen is None else chosen[labels[chosen.long()] >= 0]

    train = part(collection.train)
    assert train is not None
    return replace(
        collection, labels=labels, classes=kept, train=train, test=part(collection.test),
        validation=part(collection.validation), digest=digest_of([collection.digest.encode(), *map(os.fsencode, kept)]),
    )  # fmt: skip


def source_of(
    paths: Listing[str],
    config: DatasetConfig,
    read: Callable[[str], bytes] = read_bytes,
    damaged: dict[int, str] | None = None,
) -> InMemory | ImageFiles:
    """Encoded images: decoded into memory if `in_memory` says so, otherwise each time that they are read.

    Args:
        damaged: see `decode_all`.
    """
    if in_memory(config, len(paths), ImageFiles.channels):
        if damaged is not None:
            return InMemory(decode_all(paths, fit_of(config), read, damaged))
        return DecodedFiles(ImageFiles(paths, fit_of(config), read))
    source = ImageFiles(paths, fit_of(config), read)
    if damaged is not None:
        damaged |= processes.from_first(lambda: find_damaged(source))
    return source


def fit_of(config: DatasetConfig) -> Fit:
    return Fit(config.size, config.fit, config.background)


def in_memory(config: DatasetConfig, images: int, channels: int) -> bool:
    """Whether pixels are kept in memory: `config.in_memory`, or, if that is null, whether they fit."""
    fits = images * channels * config.size**2 <= MEMORY_LIMIT
    return fits if config.in_memory is None else config.in_memory


def check_classes(labels: Tensor, readable: Tensor, classes: tuple[str, ...]) -> None:
    """Raises:
    InputError: a class has no training image that can be read.
    """
    kept = set(labels[readable].unique().tolist())
    if not kept:
        raise InputError("not one of the training images can be read")
    for label in labels.unique().tolist():
        if label not in kept:
            raise InputError(f"class {classes[label]}: not one of its training images can be read; mend or remove them")


def consecutive(counts: Mapping[str, int]) -> dict[str, Any]:
    """Indices of consecutive parts. int32, as they stay in memory beside the split's indices."""
    ends = list(accumulate(counts.values()))
    return {
        part: torch.arange(end - count, end, dtype=torch.int32)
        for (part, count), end in zip(counts.items(), ends, strict=True)
    }


def _sizes(indices: Mapping[str, Tensor]) -> list[bytes]:
    return [f"{part} {len(chosen)}\n".encode() for part, chosen in indices.items()]


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 (n, H, W) or (n, C, H, W) -> uint8 (n, C, size, size), bilinear, antialiased. Grey becomes 3 channels."""
    if images.dim() == 3:
        images = images.unsqueeze(1)
    if images.shape[-2:] != (size, size):
        parts = []
        for part in torch.split(images, 4096):  # all images as floats would not fit into memory
            scaled = interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
            parts.append(scaled.round().clamp(0, 255).to(torch.uint8))
        images = torch.cat(parts)
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    return images.contiguous()


def root_of(config: DatasetConfig) -> Path:
    """dataset.root as an absolute path.

    Raises:
        InputError: it is not set.
    """
    if config.root is None:
        raise InputError(
            f"dataset.root has no value: set it to the folder of the images, as in dataset.root=/data/{config.name}"
        )
    return Path(config.root).expanduser().absolute()


def missing(config: DatasetConfig, what: str, *, download: bool) -> InputError:
    """The error for missing data: what was looked for, where, and how to get it."""
    get = "let it be downloaded with dataset.download=true, or say" if download else "say"
    return InputError(
        f"dataset {config.name}: found no {what} in {root_of(config)}; "
        f"{get} where it lies with dataset.root=FOLDER or the environment variable FASTHEBB_DATA=FOLDER"
    )
