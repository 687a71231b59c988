"""Which images of a data set a stage reads, as int64 indices (N,)."""

import torch
from torch import Tensor

from fasthebb_cli.data.dataset import Dataset, label_subset
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import Config, fold_of
from fasthebb_cli.settings.kind import StageSettings


def all_training_images(dataset: Dataset) -> Tensor:
    """Training images and the unlabelled ones: for stages that read no label."""
    return torch.cat([dataset.train, dataset.unlabelled])


def labelled_images(dataset: Dataset, config: Config) -> Tensor:
    """The training images whose labels may be read: the budget's, without those of `leave_out`.

    Raises:
        InputError: the data set has no labels, or too few of them.
    """
    budget, left_out = _budget(dataset, config)
    return budget[~left_out]


def left_out_images(dataset: Dataset, config: Config) -> Tensor:
    """Those of the budget's that `leave_out` names, the same share of every class.

    Raises:
        InputError: as `labelled_images`; or `leave_out` names none.
    """
    budget, left_out = _budget(dataset, config)
    if not left_out.any():
        raise InputError("split=left_out scores the labelled images that leave_out names; set it, as in leave_out=1/5")
    return budget[left_out]


def label_fraction(dataset: Dataset, config: Config) -> float:
    """The share of the training images whose labels may be read, of all folds."""
    if dataset.listed is None and config.labels_per_class is None:
        return config.label_fraction
    return len(_budget(dataset, config)[0]) / len(dataset.train)


def _budget(dataset: Dataset, config: Config) -> tuple[Tensor, Tensor]:
    """The images whose labels may be read, of all folds, and which of them are left out."""
    if not dataset.classes:
        raise InputError(f"dataset {dataset.name} has no labels: it serves `fasthebb pretrain` only, not fine-tuning")
    labels = dataset.labels[dataset.train]
    if dataset.listed is not None:
        chosen = torch.isin(dataset.train, dataset.listed).nonzero().flatten()
    else:
        chosen = label_subset(
            labels,
            config.label_fraction,
            config.seed,
            kind=config.label_subset,
            per_class=config.labels_per_class,
            classes=dataset.classes,
        )
    left_out = torch.zeros(len(chosen), dtype=torch.bool)
    if config.leave_out is not None:
        fold, folds = fold_of(config.leave_out)
        if folds > len(chosen):
            raise InputError(f"leave_out={config.leave_out}: there are only {len(chosen)} labelled images")
        by_class = labels[chosen].argsort(stable=True)
        left_out[by_class[fold::folds]] = True
    return dataset.train[chosen], left_out


def images_of_split(dataset: Dataset, settings: StageSettings, config: Config) -> Tensor:
    """The images that a stage measures on, as `settings.split` says.

    Raises:
        InputError: the data set has no labels, or no such images.
    """
    if not dataset.classes:
        raise InputError(f"dataset {dataset.name} has no labels to evaluate against; use `fasthebb pretrain`")
    if settings.split == "left_out":
        return left_out_images(dataset, config)
    indices = dataset.test if settings.split == "test" else dataset.validation
    if len(indices) == 0:
        raise InputError(f"{settings.kind}.split={settings.split}: dataset {dataset.name} has no such images")
    return indices
