"""Validates a cell before its first stage runs, so that no error waits hours into a run or in one job of a sweep."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fasthebb.card import ModelCard
from fasthebb.model_file import read_card
from fasthebb.own import OwnError, is_own, own_errors
from fasthebb.patterns import unmatched
from fasthebb_cli.data.dataset import Dataset
from fasthebb_cli.errors import InputError
from fasthebb_cli.run.classes import matched
from fasthebb_cli.run.plan import PlannedStage, plan
from fasthebb_cli.run.start import closed_of, new_network
from fasthebb_cli.settings.conf import shipped_patterns
from fasthebb_cli.settings.config import Config
from fasthebb_cli.settings.kind import Readout
from fasthebb_cli.stages import CHECKS
from fasthebb_cli.stages.autoencoder import autoencoder_of
from fasthebb_cli.stages.finetune.rule_beside_backprop import check_by_rule
from fasthebb_cli.stages.images import images_of_split, labelled_images

LARGE = 100_000_000  # parameters; 0.4 GB


def planned(config: Config, dataset: Dataset) -> tuple[Dataset, list[PlannedStage]]:
    """The cell's stages, validated, and the data set with its classes as `init_from` numbers them.

    Raises:
        InputError: as `validate`, `plan` and `matched`.
    """
    card = None
    if config.init_from is not None:
        try:
            card = read_card(Path(config.init_from))
        except ValueError as error:
            raise InputError(f"init_from: {error}") from error
        dataset = matched(dataset, card, config)
    stages = plan(config, dataset)
    validate(config, dataset, stages, card)
    return dataset, stages


def validate(config: Config, dataset: Dataset, stages: list[PlannedStage], card: ModelCard | None) -> None:
    """Checks labels, splits, layer names, the size of the images, and what single kinds of stage ask for.

    Args:
        card: of the weights of `init_from`.

    Raises:
        InputError: labels, images or layers are missing, or the network does not fit the images or the rule.
    """
    at_first = card is not None and (card.taught or card.labels_train > 0)
    for stage in stages:
        if not len(dataset.train) and ("train" in stage.settings.splits or (card is None and stage.previous is None)):
            raise InputError(
                f"{stage.name}: {config.dataset.root} has no training images; it serves only to measure a trained "
                "network, as in fasthebb evaluate init_from=DIRECTORY"
            )
        if stage.settings.scores and not _is_taught(stage.previous, at_first):
            raise InputError(
                f"{stage.name}: no label has taught this classifier, so there is nothing to measure; run finetune "
                "before it, or name weights that were fine-tuned with init_from="
            )
        if not stage.settings.measures:
            _check_not_closed(stage, card)
        if stage.settings.split is not None:
            images_of_split(dataset, stage.settings, config)
        if stage.settings.reads_labels:
            _check_labels(dataset, config, stage)
        if stage.kind in CHECKS:
            CHECKS[stage.kind](config, dataset, stage.settings)
    network = _network_that_fits(config, dataset)
    if is_own(config.model.name) and any(map(_reads_scores, stages)):
        _check_scores(config, dataset, network)
    names = [name for name, _ in network.named_modules() if name]
    for stage in stages:
        fixed = config.rule.name in stage.settings.rules_without_settings
        for key, patterns in {} if fixed else stage.settings.patterns.items():
            _check_patterns(f"{stage.configured}.{key}", patterns, network, names)
    if any(stage.settings.learns_by_rule for stage in stages):
        _check_patterns("rule.layer_options", config.rule.layer_options, network, names)
        _check_patterns("rule.layer_lr", config.rule.layer_lr, network, names)
    on_meta = any(parameter.is_meta for parameter in network.parameters())
    for readout in {stage.readout for stage in stages} - {Readout()}:
        _built(config, dataset, readout, on_meta=on_meta)
    with torch.device("meta"):
        if config.rule.name == "vae":
            autoencoder_of(config, dataset, network)
    for stage in stages:
        if stage.settings.by_rule:
            check_by_rule(config, stage.settings, _built(config, dataset, stage.readout, on_meta=on_meta))


def _check_labels(dataset: Dataset, config: Config, stage: PlannedStage) -> None:
    """Raises:
    InputError: there are no labels, or those of one class alone, of which nothing can be learnt.
    """
    chosen = labelled_images(dataset, config)
    present = dataset.labels[chosen].unique().tolist()
    if len(present) < 2:
        of = f", of class {dataset.classes[present[0]]} alone" if present else ""
        raise InputError(
            f"{stage.name} needs labels of two classes or more, and {budget_text(config)} chooses {len(chosen)}{of}"
        )


def budget_text(config: Config) -> str:
    """The setting that says which labels may be read."""
    if config.labelled is not None:
        return f"label_subset={config.labelled}"
    if config.labels_per_class is not None:
        return f"labels_per_class={config.labels_per_class}"
    return f"label_fraction={config.label_fraction:g}"


def _check_not_closed(stage: PlannedStage, card: ModelCard | None) -> None:
    """Raises:
    InputError: the stage would go on from weights that end in a closed form, other than to find its classifier.
    """
    if stage.previous is None:
        closed, is_taught = (None, False) if card is None else (closed_of(card), card.taught)
        origin = "init_from"
    else:
        closed, origin = stage.previous.readout.closed, f"the stage {stage.previous.name} before it"
        is_taught = stage.previous.settings.reads_labels  # only a classifier comes after components
    if closed and (is_taught or closed != stage.settings.readout.closed):
        raise InputError(
            f"{stage.name}: the weights of {origin} end in a closed form, and nothing goes on from there; name "
            "those of its pre-training with init_from="
        )


def _is_taught(stage: PlannedStage | None, at_first: bool) -> bool:
    """Whether the network has seen labels, after a stage; None: before the first one."""
    if stage is None:
        return at_first
    return stage.settings.reads_labels or _is_taught(stage.previous, at_first)


def _network_that_fits(config: Config, dataset: Dataset) -> nn.Module:
    """The network, after one blank image has run through it. A large one is on the meta device, if possible.

    The meta device computes nothing, but torch takes a second to load what runs on it.

    Raises:
        InputError: the network can't take images of this size.
    """
    plain = replace(config, rule=replace(config.rule, whitening=None))
    source = dataset.source
    shape = (1, source.channels, source.size, source.size)
    try:
        with torch.device("meta"):
            network = new_network(plain, dataset)
            if sum(parameter.numel() for parameter in network.parameters()) > LARGE:
                network.eval()(torch.empty(shape))
                return network
    except Exception:  # noqa: BLE001  a network that reads values can't run on the meta device
        pass
    network = new_network(plain, dataset)
    try:
        # a RuntimeError or ValueError is mostly of the images' size
        with torch.no_grad(), own_errors("model.name", config.model.name, RuntimeError, ValueError):
            network.eval()(torch.zeros(shape))
    except OwnError as error:
        raise InputError(str(error)) from error
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        size = f"{source.channels} x {source.size} x {source.size}"
        raise InputError(
            f"model={config.model.name} can't take images of {size} ({reason}); see dataset.size"
        ) from error
    return network


def _reads_scores(stage: PlannedStage) -> bool:
    """Whether the network's own output is what the stage trains or measures."""
    reads = stage.settings.reads_labels or stage.settings.measures
    return reads and stage.readout.layer is None and stage.readout.closed is None


def _check_scores(config: Config, dataset: Dataset, network: nn.Module) -> None:
    """Raises:
    InputError: a user's own network gives other than a score for each image and class, or ones without gradients.
    """
    source, name = dataset.source, config.model.name
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    wanted = (2, len(dataset.classes))
    try:
        with torch.enable_grad(), own_errors("model.name", name):
            scores = network.eval()(torch.zeros(2, source.channels, source.size, source.size, device=device))
    except OwnError as error:
        raise InputError(str(error)) from error
    if not isinstance(scores, Tensor):
        found = f"a {type(scores).__name__}"
    elif tuple(scores.shape) != wanted or not scores.is_floating_point():
        found = f"{tuple(scores.shape)} of {scores.dtype}"
    elif not scores.requires_grad and any(parameter.requires_grad for parameter in network.parameters()):
        found = "scores without gradients"
    else:
        return
    raise InputError(f"model.name={name}: gives {found} for 2 images; it must give scores {wanted} of torch.float32")


def _built(config: Config, dataset: Dataset, readout: Readout, *, on_meta: bool) -> nn.Module:
    """The network with its classifier.

    Raises:
        InputError: the network can't be built, or does not have the layers that the classifier reads.
    """
    if on_meta:
        try:
            with torch.device("meta"):
                return new_network(config, dataset, readout)
        except Exception:  # noqa: BLE001  a network that reads values can't be built on the meta device
            pass
    return new_network(config, dataset, readout)


def _check_patterns(key: str, patterns: Iterable[str], network: nn.Module, names: Sequence[str]) -> None:
    """Every pattern that a user gave matches a layer of the whole network; those of packaged files need not.

    Raises:
        InputError: one does not.
    """
    wrong = [pattern for pattern in unmatched(patterns, names) if pattern not in shipped_patterns()]
    if wrong:
        choices = ", ".join(name for name, _ in network.named_children())
        raise InputError(f"{key}: no layer is called {wrong[0]!r}; the network has: {choices}")
