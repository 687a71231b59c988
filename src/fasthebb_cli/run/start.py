"""What a stage starts from: a network on the device, with weights from wherever they come."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fasthebb.card import ModelCard
from fasthebb.model_file import adopt_weights, read_model
from fasthebb.nets.build import add_hidden_layer, build_network, closed_form_network, cut_network
from fasthebb.readout.network import ClosedForm
from fasthebb_cli.compute.batch_norm import share_batch_norm
from fasthebb_cli.compute.seeds import derived_seed
from fasthebb_cli.console.formats import counted
from fasthebb_cli.data.dataset import Dataset, mean_and_std
from fasthebb_cli.data.source import ImageSource
from fasthebb_cli.errors import InputError, bad_input
from fasthebb_cli.run.plan import PlannedStage
from fasthebb_cli.run.shared import Cell
from fasthebb_cli.settings.config import Config
from fasthebb_cli.settings.kind import ClosedReadout, Readout


@dataclass(frozen=True)
class Start:
    """What is known of the weights that a stage starts from.

    Args:
        readout: where the network is cut and how large its classifier is; layer None: it is whole.
        statistics: mean and standard deviation (C,) of each channel that images are normalised with.
        untrained: the seed made the weights, and nothing has trained them.
        labels_train, labels_validation: labels that the weights have seen.
        taught: the classifier was trained, on these features.
    """

    readout: Readout
    statistics: tuple[Tensor, Tensor]
    untrained: bool = False
    labels_train: int = 0
    labels_validation: int = 0
    taught: bool = False


def start_of(cell: Cell, stage: PlannedStage) -> tuple[nn.Module, Start]:
    """The stage's network, ready to run on the device. Its weights come from the first of these that there is:

    1. its own unfinished checkpoint (the caller loads it over the weights that this function returns),
    2. the stage before it in the cell,
    3. `init_from`,
    4. the seed.

    Raises:
        InputError: the weights can't be read, or do not fit what the stage asks for.
    """
    config = cell.config
    torch.manual_seed(derived_seed(config.seed, "network"))
    if stage.previous is not None:
        network, start, _ = _continued(cell, stage, stage.previous.directory)
    elif config.init_from is not None:
        network, start, left = _continued(cell, stage, Path(config.init_from))
        seen = counted(start.labels_train, "label")
        told = f", which have learnt from {seen}: tables count them, too" if start.labels_train else ""
        cell.view.note(f"weights from {config.init_from}" + (f", but not {', '.join(left)}" if left else "") + told)
    else:
        readout = stage.settings.readout
        network = new_network(config, cell.dataset, readout)
        start = Start(readout, mean_and_std(cell.dataset), untrained=True)
    network = share_batch_norm(cell.compute.place(network))
    if cell.compute.compile and not stage.settings.in_hooks:  # else the learner compiles what its hooks do
        network.compile()
    return network, start


def _continued(cell: Cell, stage: PlannedStage, origin: Path) -> tuple[nn.Module, Start, list[str]]:
    """The network of a model file with the classifier that the stage asks for; names of weights that do not fit it."""
    source, classes = cell.dataset.source, max(len(cell.dataset.classes), 1)
    with bad_input():
        weights, card = read_model(origin)
        found = Readout(card.layer, card.hidden, closed_of(card))
        network = new_network(cell.config, cell.dataset, found)
        is_same = not card.taught or card.classes == list(cell.dataset.classes)
        left = adopt_weights(network, weights, origin, classifier=is_same)
        if isinstance(network, ClosedForm):
            _check(network, origin, source, classes if card.taught else None)
    here = cell.config.dataset
    if (card.fit, card.background) != (here.fit, here.background):
        cell.view.warn(
            f"{origin} learnt from images with dataset.fit={card.fit} dataset.background={card.background}, and here "
            f"they are {here.fit} and {here.background}"
        )
    if card.size != source.size:
        there, size_here = f"{card.size} x {card.size}", f"{source.size} x {source.size}"
        cell.view.warn(f"{origin} learnt from images of {there}, and here they are {size_here} (dataset.size)")
    wanted, read = stage.settings.readout, found
    is_built_on = not card.taught and found.closed == wanted.closed  # its components, which a classifier reads
    if found.closed and not stage.settings.measures and not is_built_on:
        raise InputError(f"{stage.name}: the weights of {origin} end in a closed form; name those of its pre-training")
    if wanted.layer and wanted.layer != found.layer:
        with bad_input():
            network = cut_network(network, wanted.layer, channels=source.channels, size=source.size, classes=classes)
        found = Readout(wanted.layer)
    hidden = wanted.hidden or card.hidden
    if hidden != found.hidden:
        if found.hidden:
            raise InputError(f"finetune.hidden={hidden}: {origin} has a hidden layer of {found.hidden} already")
        with bad_input():
            add_hidden_layer(network, hidden)
    closed = found.closed
    if wanted.closed is not None and found.closed is None:
        closed = wanted.closed
        with bad_input():
            network = closed_form_network(network, channels=source.channels, size=source.size, **closed._asdict())
    statistics = torch.tensor(card.mean), torch.tensor(card.std)
    start = Start(
        Readout(found.layer, hidden, closed),
        statistics,
        labels_train=card.labels_train,
        labels_validation=card.labels_validation,
        taught=card.taught and not left and Readout(found.layer, hidden, closed) == read,
    )
    return network, start, left


def _check(network: ClosedForm, origin: Path, source: ImageSource, classes: int | None) -> None:
    """Raises:
    ValueError: the closed form of a model file does not fit itself, the images or the classes.
    """
    try:
        network.check(torch.zeros(1, source.channels, source.size, source.size), classes)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error


def new_network(config: Config, dataset: Dataset, readout: Readout = Readout()) -> nn.Module:  # noqa: B008  immutable
    """A fresh network for the data set: the whole one without a hidden layer, unless `readout` says otherwise."""
    with bad_input():
        return build_network(
            config.model.name,
            config.model.arguments(),
            channels=dataset.source.channels,
            size=dataset.source.size,
            classes=max(len(dataset.classes), 1),
            whitening=config.rule.whitening is not None,
            layer=readout.layer,
            hidden=readout.hidden,
            closed_form=readout.closed._asdict() if readout.closed else None,
        )


def closed_of(card: ModelCard) -> ClosedReadout | None:
    """What the classifier of a model reads, if it is in closed form."""
    if card.closed_form is None:
        return None
    layers = card.closed_form["layers"]
    return ClosedReadout(**card.closed_form | {"layers": None if layers is None else tuple(layers)})
