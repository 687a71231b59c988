"""Which images of a data set a stage reads, as int64 indices (N,)."""

import torch
from torch import Tensor

from fasthebb_cli.data.dataset import Dataset, label_subset
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import Config
from fasthebb_cli.settings.kind import StageSettings


def all_training_images(dataset: Dataset) -> Tensor:
    """Training images and the unlabelled ones: for stages that read no label."""
    return torch.cat([dataset.train, dataset.unlabelled])


def labelled_images(dataset: Dataset, config: Config) -> Tensor:
    """The training images whose labels may be read: `label_fraction` of them.

    Raises:
        InputError: the data set has no labels, or too few of them.
    """
    if not dataset.classes:
        raise InputError(f"dataset {dataset.name} has no labels: it serves `fasthebb pretrain` only, not fine-tuning")
    positions = label_subset(
        dataset.labels[dataset.train], config.label_fraction, config.seed, kind=config.label_subset
    )
    return dataset.train[positions]


def images_of_split(dataset: Dataset, settings: StageSettings) -> Tensor:
    """The test or validation images, as `settings.split` says.

    Raises:
        InputError: the data set has no labels, or no such images.
    """
    if not dataset.classes:
        raise InputError(f"dataset {dataset.name} has no labels to evaluate against; use `fasthebb pretrain`")
    indices = dataset.test if settings.split == "test" else dataset.validation
    if len(indices) == 0:
        raise InputError(f"{settings.kind}.split={settings.split}: dataset {dataset.name} has no such images")
    return indices
