"""Finds before anything runs what would stop a later stage, hours into a run or in one of a sweep's jobs."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from fasthebb.patterns import unmatched
from fasthebb_cli.data.dataset import Dataset
from fasthebb_cli.errors import InputError
from fasthebb_cli.run.plan import PlannedStage
from fasthebb_cli.run.start import new_network
from fasthebb_cli.settings.config import Config
from fasthebb_cli.settings.evaluate import EvaluateConfig
from fasthebb_cli.settings.finetune import FinetuneConfig
from fasthebb_cli.settings.pretrain import PretrainConfig
from fasthebb_cli.settings.probe import ProbeConfig
from fasthebb_cli.settings.stages import StageConfig
from fasthebb_cli.stages.autoencoder import autoencoder_of
from fasthebb_cli.stages.finetune.rule_beside_backprop import check_by_rule
from fasthebb_cli.stages.images import images_of_split, labelled_images


def check(config: Config, dataset: Dataset, stages: list[PlannedStage]) -> None:
    """Labels, splits, layers that are named, the size of the images, and whether an autoencoder can mirror the network.

    Raises:
        InputError: one of them is not there, or the network can't take such images or be mirrored.
    """
    for stage in stages:
        settings = stage.settings
        if isinstance(settings, EvaluateConfig | ProbeConfig):
            images_of_split(dataset, settings)
        if isinstance(settings, FinetuneConfig | ProbeConfig) or (
            isinstance(settings, PretrainConfig) and settings.teacher
        ):
            labelled_images(dataset, config)
    network = _tried(config, dataset)
    for stage in stages:
        _check_patterns(stage.settings, network)
    with torch.device("meta"):
        if config.rule.name == "vae":
            autoencoder_of(config, dataset, network)
        for layer, hidden in {(stage.layer, stage.hidden) for stage in stages} - {(None, 0)}:
            new_network(config, dataset, layer, hidden)
        for stage in stages:
            if isinstance(stage.settings, FinetuneConfig) and stage.settings.by_rule:
                check_by_rule(config, stage.settings, new_network(config, dataset, stage.layer, stage.hidden))


def _tried(config: Config, dataset: Dataset) -> nn.Module:
    """The network, after an image without content has run through it: if it can be, without computing anything.

    Raises:
        InputError: it can't take images of this size.
    """
    plain = replace(config, rule=replace(config.rule, whitening=None))
    source = dataset.source
    shape = (1, source.channels, source.size, source.size)
    try:
        with torch.device("meta"):
            network = new_network(plain, dataset)
            network.eval()(torch.empty(shape))
            return network
    except InputError:
        raise
    except Exception:  # noqa: BLE001  of a network that looks at values; for real it either works or says why not
        network = new_network(plain, dataset)
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(shape))
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        size = f"{source.channels} x {source.size} x {source.size}"
        raise InputError(
            f"model={config.model.name} can't take images of {size} ({reason}); see dataset.size"
        ) from error
    return network


def _check_patterns(settings: StageConfig, network: nn.Module) -> None:
    """Whether patterns that a user must have given mean any layer of the whole network."""
    given: dict[str, Iterable[str]] = {}
    if isinstance(settings, PretrainConfig):
        excluded = [pattern for pattern in settings.exclude if pattern != "classifier*"]  # the usual one
        given = {"include": settings.include, "exclude": excluded, "teacher_units": settings.teacher_units}
    elif isinstance(settings, FinetuneConfig):
        given = {"layer_lr": settings.layer_lr}
    names = [name for name, _ in network.named_modules() if name]
    for key, patterns in given.items():
        if wrong := unmatched(patterns, names):
            choices = ", ".join(name for name, _ in network.named_children())
            raise InputError(f"{settings.kind}.{key}: no layer is called {wrong[0]!r}; the network has: {choices}")
