"""The SoftHebb network for CIFAR (Journé et al., ICLR 2023): batch norm -> convolution -> Triangle -> pooling -> power.

The paper raises to the power before it pools. The largest of some values has the largest power, so the result is the
same, and a quarter of the values is raised.
"""

import math
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn

GAIN = 25  # mean length of the initial weight vectors, which shrink to length 1 while they learn


class Triangle(nn.Module):
    """max(0, u - mean over units of u), at each position."""

    def forward(self, u: Tensor) -> Tensor:
        return (u - u.mean(1, keepdim=True)).relu_()


class Power(nn.Module):
    """x^power of x >= 0.

    Args:
        power: > 0; a power above 1 favours the strongest units.
    """

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        return x**self.power


class _Layer(NamedTuple):
    """Modules after the Triangle: the pooling, and the power if it is not 1."""

    units: int
    kernel: int
    after: tuple[nn.Module, ...]


def softhebb(*, channels: int, size: int, classes: int, width: float = 1.0, dropout: float = 0.5) -> nn.Sequential:
    """Three convolutions with reflected padding; the pooling after each halves the image.

    Args:
        channels, size: of the images, (channels, size, size); size >= 8.
        classes: number of classes.
        width: factor on the number of units of every hidden layer, > 0.
        dropout: probability before the classifier, in [0, 1).

    Raises:
        ValueError: images that are too small.
    """
    if size < 8:
        raise ValueError(f"images of {size} x {size} are too small for this network: three layers halve them")
    plan = [
        _Layer(96, 5, (nn.MaxPool2d(4, 2, 1), Power(0.7))),
        _Layer(384, 3, (nn.MaxPool2d(4, 2, 1), Power(1.4))),
        _Layer(1536, 3, (nn.AvgPool2d(2),)),
    ]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, layer in enumerate(plan):
        units = max(1, round(layer.units * width))
        convolution = nn.Conv2d(
            channels, units, layer.kernel, padding=layer.kernel // 2, padding_mode="reflect", bias=False
        )
        with torch.no_grad():
            convolution.weight.normal_(0, GAIN / math.sqrt(convolution.weight[0].numel()))
        norm = nn.BatchNorm2d(channels, affine=False)
        layers[f"conv{index + 1}"] = nn.Sequential(norm, convolution, Triangle(), *layer.after)
        channels, size = units, size // 2
    layers["classifier"] = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels * size**2, classes))
    return nn.Sequential(layers)
