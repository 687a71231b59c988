"""A data set with its splits. `load_dataset` is the entry point.

To add a data set, write a function that returns a `Collection`, name it in DATASETS, and add conf/dataset/NAME.yaml.
"""

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from fasthebb.own import OwnError, imported, is_own, own_errors
from fasthebb_cli.compute.seeds import derived_seed
from fasthebb_cli.data.collection import Collection, of_classes
from fasthebb_cli.data.contents import Digests
from fasthebb_cli.data.downloads import cifar10, cifar100, fashion_mnist, mnist, stl10
from fasthebb_cli.data.embedded import digits, mnist5k
from fasthebb_cli.data.folders import image_folder
from fasthebb_cli.data.imagenet import imagenet, tiny_imagenet
from fasthebb_cli.data.listed import listed_images
from fasthebb_cli.data.own_collection import check_collection
from fasthebb_cli.data.packed import open_packed, packed_root
from fasthebb_cli.data.source import DecodedFiles, ImageSource, InMemory
from fasthebb_cli.data.splits import label_subset, split_sizes, stratified_order
from fasthebb_cli.errors import InputError, Interrupted, RunError, bad_input
from fasthebb_cli.settings.config import DatasetConfig

__all__ = ["DATASETS", "Dataset", "label_subset", "load_dataset", "mean_and_std"]

DATASETS: dict[str, Callable[..., Collection]] = {
    "mnist5k": mnist5k,
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "stl10": stl10,
    "tiny_imagenet": tiny_imagenet,
    "imagenet": imagenet,
    "image_folder": image_folder,
}
EMBEDDED = ("mnist5k", "digits")  # files of an installed package: dataset.root is not used
STATISTICS_SAMPLES = 5_000  # images that mean and deviation are taken over, if images are decoded when they are read


@dataclass(frozen=True)
class Dataset:
    """Images, labels and splits.

    Args:
        classes: names; label k is classes[k]. Empty if the data set has no labels.
        labels: int64 (N,); -1 for an image without a label.
        train, validation, test: int64 indices, sorted and disjoint.
        unlabelled: int64 indices of further images, for pre-training only.
        digest: hexadecimal; depends on the images, their order, their size and their labels, but neither on the place
            of the files nor on whether they are packed.
        left_out: one line for each damaged file that was left out.
        contents: digests of the images' files; None: they come from arrays, or packed.
        notes: lines to warn of.
        listed: int64 indices, sorted, of the training images whose labels a file says may be read; None: no file does.
    """

    name: str
    classes: tuple[str, ...]
    source: ImageSource
    labels: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor
    unlabelled: Tensor
    digest: str
    left_out: tuple[str, ...] = ()
    contents: Digests | None = None
    notes: tuple[str, ...] = ()
    listed: Tensor | None = None


def load_dataset(config: DatasetConfig, seed: int, labelled: str | None = None) -> Dataset:
    """The data set, split by the seed.

    The decoded images stay in memory for the next call with the same settings.

    Args:
        labelled: a file that lists the training images whose labels may be read; the split leaves them for training.

    Raises:
        InputError: the data are missing or damaged, or there are too few images for the split; or the file can't be
            read, or lists other images.
        RunError: a download failed.
    """
    collection = collection_of(config)
    listed = None if labelled is None else listed_images(labelled, collection, is_part=config.classes is not None)
    train, validation, test = _split(collection, config, seed, listed)
    if isinstance(collection.source, DecodedFiles):
        collection.source.fill(torch.cat([train, validation, test, collection.unlabelled.long()]))
    return Dataset(
        name=config.name,
        classes=collection.classes,
        source=collection.source,
        labels=collection.labels,
        train=train.sort().values,
        validation=validation.sort().values,
        test=test.sort().values,
        unlabelled=collection.unlabelled.long(),
        digest=collection.digest,
        left_out=collection.left_out,
        contents=collection.contents,
        notes=collection.notes,
        listed=listed,
    )


def collection_of(config: DatasetConfig) -> Collection:
    """The images before they are split. They stay in memory for the next call with the same settings.

    Raises:
        InputError, RunError: as `load_dataset`.
    """
    settings = replace(config, train_samples=None, validation_samples=None, test_samples=None)
    root, unlabelled, classes = map(_absolute, (config.root, config.unlabelled, config.classes))
    settings = replace(settings, root=root, unlabelled=unlabelled, classes=classes)
    if config.labels is not None and Path(config.labels).expanduser().is_file():
        settings = replace(settings, labels=_absolute(config.labels))
    return _collection(json.dumps(asdict(settings), sort_keys=True))


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(os.path.expanduser(path))


@lru_cache(maxsize=2)
def _collection(settings: str) -> Collection:
    """The images and labels that the settings name; they are JSON because the cache needs a hashable key."""
    config = DatasetConfig(**json.loads(settings))
    return of_classes(_opened(config), config.classes)


def _opened(config: DatasetConfig) -> Collection:
    if config.name not in EMBEDDED and (packed := packed_root(config)):
        return open_packed(packed, config)
    function = _function(config.name)
    if function is not image_folder and config.name in DATASETS:
        for key in ("labels", "unlabelled"):
            if getattr(config, key) is not None:
                raise InputError(f"dataset.{key}: dataset {config.name} has its own; use dataset=image_folder")
    accepted = list(inspect.signature(function).parameters)[1:]
    for name in config.options:
        if name not in accepted:
            choices = ", ".join(accepted) or "none"
            raise InputError(f"dataset.options: unknown option {name}; {config.name} accepts: {choices}")
    with bad_input(), own_errors("dataset.name", config.name, InputError, RunError, Interrupted):
        collection = function(config, **config.options)
    if not isinstance(collection, Collection):
        raise InputError(f"dataset.name={config.name} must return a Collection, not {type(collection).__name__}")
    if is_own(config.name):
        try:
            with own_errors("dataset.name", config.name, InputError, RunError, Interrupted, ValueError):
                check_collection(collection)
        except OwnError as error:
            raise InputError(str(error)) from error
        except ValueError as error:
            raise InputError(f"dataset.name={config.name}: {error}") from error
    return collection


def _function(name: str) -> Callable[..., Collection]:
    """The function that loads a data set: an entry of DATASETS, or the user's my_package.module:function."""
    if name in DATASETS:
        return DATASETS[name]
    if ":" not in name:
        known = ", ".join(DATASETS)
        raise InputError(f"dataset.name: unknown {name!r}; choose from: {known}, or my_package.module:function")
    with bad_input():
        return imported("dataset.name", name)


def _split(
    collection: Collection, config: DatasetConfig, seed: int, listed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test indices.

    The training images of the collection are put into a stratified order, after those that are listed. The first ones
    are for training; the last ones are for validation and, if the data set has no test images of its own, for testing.
    """
    pool, labels = collection.train.long(), collection.labels
    if not collection.classes:
        if config.train_samples or config.validation_samples or config.test_samples:
            raise InputError(
                f"dataset.train_samples: the {len(pool)} images have no labels and are all used to pre-train"
            )
        return pool, pool[:0], pool[:0]
    if not len(pool):  # only images to be measured on
        sizes = {"validation": config.validation_samples, "test": config.test_samples}
        parts = {name: getattr(collection, name) for name in sizes}
        validation, test = (
            pool if part is None else _subset(part, labels, sizes[name], name, seed) for name, part in parts.items()
        )
        return pool, validation, test
    pool = pool[stratified_order(labels[pool], derived_seed(seed, "split"))]
    if listed is not None:
        first = torch.isin(pool, listed)
        pool = torch.cat([pool[first], pool[~first]])
    test_size = config.test_samples if collection.test is None else 0
    if collection.validation is not None:
        kept = len(pool) - (split_sizes(len(pool), None, 0, test_size)[2] if collection.test is None else 0)
        pool, held_out = pool[:kept], pool[kept:]
        train_size = _available(len(pool), config.train_samples, "train")
        train = pool[:train_size]
        validation = _subset(collection.validation, labels, config.validation_samples, "validation", seed)
    else:
        wanted = _wanted(collection, config.train_samples)
        train_size, validation_size, test_size = split_sizes(len(pool), wanted, config.validation_samples, test_size)
        end = len(pool) - test_size
        train, validation, held_out = pool[:train_size], pool[end - validation_size : end], pool[end:]
    if listed is not None and len(listed) > len(train):
        raise InputError(
            f"label_subset lists {len(listed):,} images, and only {len(train):,} are for training; "
            "lower dataset.validation_samples or raise dataset.train_samples"
        )
    if collection.test is None:
        return train, validation, held_out
    return train, validation, _subset(collection.test, labels, config.test_samples, "test", seed)


def _wanted(collection: Collection, train_samples: int | None) -> int | None:
    """Number of training images. The papers' number is scaled down for a smaller copy of the data set, other numbers
    are taken as they are.
    """
    table, total = collection.table, len(collection.train)
    if table is None or train_samples not in (None, table.train):
        return train_samples
    return min(round(table.train * total / table.total), total - 1) if total < table.total else table.train


def _subset(part: Tensor, labels: Tensor, samples: int | None, name: str, seed: int) -> Tensor:
    """So many images of a part that comes with the data set, stratified and chosen by the seed; None: all of them."""
    size, part = _available(len(part), samples, name), part.long()
    return part if size == len(part) else part[stratified_order(labels[part], derived_seed(seed, name))[:size]]


def _available(total: int, samples: int | None, name: str) -> int:
    if samples is not None and samples > total:
        raise InputError(f"dataset.{name}_samples={samples}: there are only {total}")
    return total if samples is None else samples


def statistics_of(dataset: Dataset) -> str:
    """How many training images `mean_and_std` reads: "all", or a number of them."""
    many = not isinstance(dataset.source, InMemory) and len(dataset.train) > STATISTICS_SAMPLES
    return f"{STATISTICS_SAMPLES} images" if many else "all"


def mean_and_std(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of each channel, float32 on a scale of 0 to 1, over the training images.

    The sums are exact integers, so they depend on neither order nor device. If images are decoded when they are read,
    5,000 of them are taken, always the same ones.
    """
    source, chosen = dataset.source, dataset.train
    if statistics_of(dataset) != "all":
        generator = torch.Generator().manual_seed(derived_seed(0, "statistics"))
        chosen = chosen[torch.randperm(len(chosen), generator=generator)[:STATISTICS_SAMPLES].sort().values]
    total = squares = torch.zeros(source.channels, dtype=torch.int64)
    for part in torch.split(chosen, 512):
        pixels = source.read(part).to(torch.int64)
        total = total + pixels.sum((0, 2, 3)).cpu()
        squares = squares + pixels.square().sum((0, 2, 3)).cpu()
    count = len(chosen) * source.size**2
    mean = total.double() / count
    variance = (squares.double() / count - mean.square()).clamp_min(1)  # a blank channel must not divide by zero
    return (mean / 255).float(), (variance.sqrt() / 255).float()
