"""What a stage starts from: its network, with weights from wherever they come, and how its images are prepared."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fasthebb.model_file import adopt_weights, read_model
from fasthebb.nets.build import add_hidden_layer, build_network, cut_network
from fasthebb_cli.compute.seeds import derived_seed
from fasthebb_cli.console.view import View
from fasthebb_cli.data.dataset import Dataset, mean_and_std
from fasthebb_cli.errors import InputError, bad_input
from fasthebb_cli.run.plan import PlannedStage
from fasthebb_cli.settings.config import Config
from fasthebb_cli.settings.kind import Readout


@dataclass(frozen=True)
class Start:
    """What a stage starts from.

    Args:
        network: with its weights, in the CPU's memory.
        readout: what the network really has: layer None, it is whole; hidden 0, no hidden layer.
        statistics: mean and standard deviation of each channel that its images are normalised with.
        labels_train, labels_validation: labels that the weights have seen.
    """

    network: nn.Module
    readout: Readout
    statistics: tuple[Tensor, Tensor]
    labels_train: int = 0
    labels_validation: int = 0


def start_of(config: Config, dataset: Dataset, stage: PlannedStage, view: View) -> Start:
    """The stage's network. Its weights come from, in this order:

    1. its own unfinished checkpoint (loaded by the caller, over whatever is done here),
    2. the stage before it in the cell,
    3. `init_from`,
    4. scratch: the network as the seed made it.
    """
    torch.manual_seed(derived_seed(config.seed, "network"))
    wanted = stage.settings.readout
    if stage.previous is not None:
        origin = stage.previous.directory
    elif config.init_from is not None:
        origin = Path(config.init_from)
    else:
        return Start(new_network(config, dataset, wanted), wanted, mean_and_std(dataset))
    with bad_input():
        weights, card = read_model(origin)
        found = Readout(card.layer, card.hidden)
        network = new_network(config, dataset, found)
        left = adopt_weights(network, weights, origin)
    if stage.previous is None:
        view.note(f"weights from {origin}" + (f", but not {', '.join(left)}" if left else ""))
    if wanted.layer not in (None, found.layer):
        source, classes = dataset.source, max(len(dataset.classes), 1)
        with bad_input():
            network = cut_network(network, wanted.layer, channels=source.channels, size=source.size, classes=classes)
        found = Readout(wanted.layer)
    hidden = wanted.hidden or card.hidden
    if hidden != found.hidden:
        if found.hidden:
            raise InputError(f"finetune.hidden={hidden}: {origin} has a hidden layer of {found.hidden} already")
        with bad_input():
            add_hidden_layer(network, hidden)
    statistics = torch.tensor(card.mean), torch.tensor(card.std)
    return Start(network, Readout(found.layer, hidden), statistics, card.labels_train, card.labels_validation)


def new_network(config: Config, dataset: Dataset, readout: Readout = Readout()) -> nn.Module:  # noqa: B008  immutable
    """A fresh network for the data set; the whole one without a hidden layer unless the readout says otherwise."""
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
        )
