"""Classes of a data set and of weights that were taught elsewhere are matched by name, never by position."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from fasthebb.card import ModelCard
from fasthebb_cli.console.formats import counted, short
from fasthebb_cli.data.dataset import Dataset
from fasthebb_cli.data.files import composed
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import Config

SHOWN = 10  # names in a message


def matched(dataset: Dataset, card: ModelCard, config: Config) -> Dataset:
    """The data set with labels as the classifier of `init_from` numbers its classes.

    A stage that measures this classifier may have some of its classes; a stage that learns keeps the classifier only if
    the data set has all of its classes and no other.

    Raises:
        InputError: a classifier is to be measured on classes that it does not know.
    """
    known, here = card.classes, list(dataset.classes)
    if not card.taught or not here or here == known:
        return dataset
    number = {composed(name): k for k, name in enumerate(known)}
    unknown = [name for name in here if composed(name) not in number]
    if not _is_measured(config):
        return dataset if unknown or len(here) < len(known) else _renumbered(dataset, known, number)
    if unknown:
        raise InputError(
            f"the classifier of init_from={config.init_from} does not know {counted(len(unknown), 'class', 'classes')} "
            f"of dataset {config.dataset.name}: {_names(unknown)}; it knows: {_names(known)}; rename the folders or "
            "labels, or fine-tune it on these classes"
        )
    return _renumbered(dataset, known, number)


def _is_measured(config: Config) -> bool:
    """Whether a stage measures the classifier before any other learns from labels."""
    for settings in map(config.settings.__getitem__, config.stages):
        if settings.scores:
            return True
        if settings.reads_labels and not settings.measures:  # a probe keeps nothing of what it learns
            return False
    return False


def _renumbered(dataset: Dataset, known: list[str], number: Mapping[str, int]) -> Dataset:
    here = [number[composed(name)] for name in dataset.classes]
    numbers = torch.tensor([*here, -1])  # the last is that of images without a label
    return replace(dataset, classes=tuple(known), labels=numbers[dataset.labels])


def _names(names: list[str]) -> str:
    return ", ".join(map(short, names[:SHOWN])) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
