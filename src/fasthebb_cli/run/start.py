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
from fasthebb_cli.settings.finetune import FinetuneConfig


@dataclass(frozen=True)
class Start:
    """What a stage starts from.

    Args:
        network: with its weights, still where it was made.
        layer: the network is cut after it; None: it is whole.
        hidden: units of the classifier's hidden layer; 0: it has none.
        statistics: mean and standard deviation of each channel that its images are normalised with.
        labels_train, labels_validation: labels that the weights have seen.
    """

    network: nn.Module
    layer: str | None
    hidden: int
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
    wanted, hidden = None, 0
    if isinstance(stage.settings, FinetuneConfig):
        wanted, hidden = stage.settings.layer, stage.settings.hidden
    torch.manual_seed(derived_seed(config.seed, "network"))
    if stage.previous is not None:
        origin = stage.previous.directory
    elif config.init_from is not None:
        origin = Path(config.init_from)
    else:
        return Start(new_network(config, dataset, wanted, hidden), wanted, hidden, mean_and_std(dataset))
    with bad_input():
        weights, card = read_model(origin)
        network = new_network(config, dataset, card.layer, card.hidden)
        left = adopt_weights(network, weights, origin)
    if stage.previous is None:
        view.note(f"weights from {origin}" + (f", but not {', '.join(left)}" if left else ""))
    layer = wanted or card.layer
    present = card.hidden
    if layer != card.layer:
        source, classes = dataset.source, max(len(dataset.classes), 1)
        with bad_input():
            network = cut_network(network, str(layer), channels=source.channels, size=source.size, classes=classes)
        present = 0
    hidden = hidden or card.hidden
    if hidden != present:
        if present:
            raise InputError(f"finetune.hidden={hidden}: {origin} has a hidden layer of {present} already")
        with bad_input():
            add_hidden_layer(network, hidden)
    statistics = torch.tensor(card.mean), torch.tensor(card.std)
    return Start(network, layer, hidden, statistics, card.labels_train, card.labels_validation)


def new_network(config: Config, dataset: Dataset, layer: str | None = None, hidden: int = 0) -> nn.Module:
    """A fresh network for the data set, cut after `layer` if that is not None; hidden: units in its classifier."""
    with bad_input():
        return build_network(
            config.model.name,
            config.model.arguments(),
            channels=dataset.source.channels,
            size=dataset.source.size,
            classes=max(len(dataset.classes), 1),
            whitening=config.rule.whitening is not None,
            layer=layer,
            hidden=hidden,
        )
