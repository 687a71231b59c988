"""Data sets that torchvision can download: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100, STL-10.

They are read from dataset.root, and downloaded into it only if dataset.download is true. Labels and the order of the
classes are the official ones.
"""

import gzip
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fasthebb_cli.data.collection import Collection, Table, from_arrays, missing, root_of
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.settings.config import DatasetConfig


def _datasets() -> Any:
    """torchvision.datasets, imported late: it takes seconds, which other data sets should not pay for."""
    from torchvision import datasets

    return datasets


def mnist(config: DatasetConfig) -> Collection:
    """70,000 digits, 28 x 28, from idx files."""
    classes = tuple("0123456789")
    return _idx_set(config, ("mnist", "MNIST/raw", "."), _datasets().MNIST, classes)


def fashion_mnist(config: DatasetConfig) -> Collection:
    """70,000 pieces of clothing, 28 x 28, from idx files, such as those of Debian's package dataset-fashion-mnist."""
    classes = tuple(_datasets().FashionMNIST.classes)
    return _idx_set(config, ("fashion-mnist", "FashionMNIST/raw", "."), _datasets().FashionMNIST, classes)


def cifar10(config: DatasetConfig) -> Collection:
    return _cifar(config, _datasets().CIFAR10)


def cifar100(config: DatasetConfig) -> Collection:
    return _cifar(config, _datasets().CIFAR100)


def stl10(config: DatasetConfig) -> Collection:
    """13,000 labelled photographs, 96 x 96, and 100,000 without labels for pre-training."""

    def part(split: str, download: bool) -> tuple[Any, tuple[Tensor, Tensor]]:
        loaded = _torchvision(config, _datasets().STL10, split=split, download=download)
        return loaded, (torch.from_numpy(loaded.data), torch.from_numpy(np.asarray(loaded.labels)))

    first, train = part("train", config.download)
    parts = {"train": train, "test": part("test", False)[1], "unlabelled": part("unlabeled", False)[1]}
    return from_arrays(parts, tuple(first.classes), config.size, Table(4_000, 5_000))


def _cifar(config: DatasetConfig, cls: type[Any]) -> Collection:
    loaded = [_torchvision(config, cls, train=True, download=config.download), _torchvision(config, cls, train=False)]
    parts = {
        part: (torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets))
        for part, data in zip(("train", "test"), loaded, strict=True)
    }
    return from_arrays(parts, tuple(loaded[0].classes), config.size, Table(40_000, 50_000))


def _torchvision(config: DatasetConfig, cls: Callable[..., Any], **arguments: Any) -> Any:
    """A data set of torchvision in dataset.root, which may also be its own folder, such as cifar-10-batches-py.

    Raises:
        InputError: the data are missing or damaged.
        RunError: the download failed.
    """
    root = root_of(config)
    base = str(getattr(cls, "base_folder", ""))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)  # numpy on CIFAR's old pickles
            return cls(root.parent if base and root.name == base else root, **arguments)
    except (RuntimeError, OSError) as error:  # URLError is an OSError
        if arguments.get("download"):
            raise RunError(f"dataset {config.name}: download into {root} failed: {_one_line(error)}") from error
        if base:
            _name_damaged(config, cls, root if root.name == base else root / base)
        raise missing(config, f"complete {base or config.name}", download=True) from error


def _name_damaged(config: DatasetConfig, cls: Any, folder: Path) -> None:
    """Raises:
    InputError: a file in the data set's folder is missing or damaged; names it.
    """
    from torchvision.datasets.utils import check_integrity  # here, as above

    meta = getattr(cls, "meta", None)
    published = [*cls.train_list, *cls.test_list, *([(meta["filename"], meta["md5"])] if meta else [])]
    for name, md5 in published if folder.is_dir() else ():
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: there is no such file; the copy of {config.name} is not complete")
        if not check_integrity(folder / name, md5):
            raise InputError(f"{folder / name}: is damaged: its md5 sum is not the published {md5}; get it again")


IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _idx_set(
    config: DatasetConfig, folders: tuple[str, ...], cls: Callable[..., Any], classes: tuple[str, ...]
) -> Collection:
    """Training and test images from the first of the folders below root that has all four files, gzipped or not."""
    files = _idx_files(root_of(config), folders)
    if files is None and config.download:
        _torchvision(config, cls, download=True)
        files = _idx_files(root_of(config), folders)
    if files is None:
        raise missing(config, f"{IDX_FILES[0]}[.gz] and its three companions", download=True)
    images, labels, test_images, test_labels = map(_read_idx, files)
    if len(images) != len(labels) or len(test_images) != len(test_labels):
        raise InputError(f"{files[0].parent}: images and labels differ in number")
    return from_arrays(
        {"train": (images, labels), "test": (test_images, test_labels)}, classes, config.size, Table(50_000, 60_000)
    )


def _idx_files(root: Path, folders: tuple[str, ...]) -> list[Path] | None:
    for folder in folders:
        found = [[p for p in (root / folder / name, root / folder / f"{name}.gz") if p.is_file()] for name in IDX_FILES]
        if all(found):
            return [paths[0] for paths in found]
    return None


def _read_idx(path: Path) -> Tensor:
    """A uint8 array in the idx format of yann.lecun.com: 0, 0, 8, number of dimensions, the dimensions, the bytes."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, dimensions = struct.unpack(">HBB", content[:4])[:2], content[3]
        shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    except (OSError, EOFError, zlib.error, struct.error, IndexError) as error:
        raise InputError(f"{path}: can't be read as an idx file: {_one_line(error)}") from error
    body = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).copy()
    if magic != (0, 8) or math.prod(shape) != len(body):
        raise InputError(f"{path}: is not a whole idx file of bytes")
    return torch.from_numpy(body.reshape(shape))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
