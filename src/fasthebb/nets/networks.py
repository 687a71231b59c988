"""The networks of the papers as plain modules: conv -> ReLU -> pool -> batch norm, no biases. Know no learning rule.

Source: the authors' public code at the time of Lagani et al. 2022 (arXiv 2207.03172).
Each layer is a named child (`conv1`, ..., `fc5`, `classifier`), so that features can be read after any of them.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor, nn

Norm = Literal["relative", "batch"]
Activation = Literal["relu", "tanh"]
ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {"relu": lambda: nn.ReLU(inplace=True), "tanh": nn.Tanh}


class Stage(NamedTuple):
    """One convolutional layer: output channels, kernel size, max-pooling factor (1: none)."""

    channels: int
    kernel: int = 3
    pool: int = 1


def relative(normalised: Tensor, running_var: Tensor | None) -> Tensor:
    """Keeps the relative variance between channels that batch norm removes ("modified BN" of the authors' code).

    Each normalised channel is multiplied by sqrt(running_var / mean over channels of running_var). So principal
    components of larger variance stay larger.
    """
    assert running_var is not None
    scale = (running_var / running_var.mean()).sqrt()
    return normalised * scale.reshape(-1, *[1] * (normalised.dim() - 2))


class RelativeBatchNorm1d(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return relative(super().forward(x), self.running_var)


class RelativeBatchNorm2d(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return relative(super().forward(x), self.running_var)


def conv6(
    *,
    channels: int,
    size: int,
    classes: int,
    width: float = 1.0,
    norm: Norm = "batch",
    dropout: float = 0.5,
    activation: Activation = "relu",
) -> nn.Sequential:
    """Four convolutions and two fully connected layers, for images of 32 x 32.

    Args:
        channels, size: of the images, (channels, size, size); size >= 24.
        classes: number of classes.
        width: factor on the number of units of every hidden layer, > 0.
        norm: batch norm of the deepest three hidden layers: "relative" (see RelativeBatchNorm2d) or plain "batch".
        dropout: probability before the classifier, in [0, 1).
        activation: after every hidden layer.

    Raises:
        ValueError: images that are too small.
    """
    stages = [Stage(96, 5, 2), Stage(128), Stage(192, 3, 2), Stage(256)]
    return _network(stages, channels, size, classes, width=width, norm=norm, dropout=dropout, activation=activation)


def conv10(
    *,
    channels: int,
    size: int,
    classes: int,
    width: float = 1.0,
    norm: Norm = "batch",
    dropout: float = 0.5,
    activation: Activation = "relu",
) -> nn.Sequential:
    """Eight convolutions and two fully connected layers, for 210 x 210 images; arguments as in conv6, size >= 162."""
    stages = [
        Stage(96, 7, 3), Stage(128), Stage(192, 3, 2), Stage(192), Stage(256, 3, 2),
        Stage(256), Stage(384, 3, 2), Stage(512),
    ]  # fmt: skip
    return _network(stages, channels, size, classes, width=width, norm=norm, dropout=dropout, activation=activation)


def _network(
    stages: list[Stage],
    channels: int,
    size: int,
    classes: int,
    *,
    width: float,
    norm: Norm,
    dropout: float,
    activation: Activation,
) -> nn.Sequential:
    depth = len(stages) + 1
    relative_from = depth - 3 if norm == "relative" else depth
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    wanted = size
    for index, stage in enumerate(stages):
        units = max(1, round(stage.channels * width))
        parts: list[nn.Module] = [nn.Conv2d(channels, units, stage.kernel, bias=False), ACTIVATIONS[activation]()]
        if stage.pool > 1:
            parts.append(nn.MaxPool2d(stage.pool))
        parts.append(RelativeBatchNorm2d(units) if index >= relative_from else nn.BatchNorm2d(units))
        layers[f"conv{index + 1}"] = nn.Sequential(*parts)
        channels, size = units, (size - stage.kernel + 1) // stage.pool
        if size < 1:
            raise ValueError(
                f"images of {wanted} x {wanted} are too small for this network: conv{index + 1} is left with nothing"
            )
    units = max(1, round(4096 * width))
    final_norm = RelativeBatchNorm1d(units) if norm == "relative" else nn.BatchNorm1d(units)
    layers[f"fc{depth}"] = nn.Sequential(
        nn.Flatten(), nn.Linear(channels * size * size, units, bias=False), ACTIVATIONS[activation](), final_norm
    )
    layers["classifier"] = nn.Sequential(nn.Dropout(dropout), nn.Linear(units, classes))
    return nn.Sequential(layers)


def children_of(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and children, in order. `named_children` leaves out the second place of a child that stands twice."""
    return [(name, child) for name, child in network._modules.items() if child is not None]


def features(network: nn.Sequential, images: Tensor, layer: str) -> Tensor:
    """The output of a named child of the network, batch norm included.

    Raises:
        ValueError: there is no such layer.
    """
    for name, module in children_of(network):
        images = module(images)
        if name == layer:
            return images
    raise ValueError(f"no layer {layer!r}; the network has: {', '.join(dict(network.named_children()))}")
