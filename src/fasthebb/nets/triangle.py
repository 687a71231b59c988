"""One wide layer of Triangle units on whitened patches (Coates, Ng and Lee 2011).

    f_k = max(0, mean over units j of z_j - z_k),  z_k = |x - c_k|        for the whitened patch x at each position

Where k-means has learnt the centres c_k, it is the paper's network. As x is a map, the layer is a 1 x 1 convolution,
which any rule can train.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from fasthebb.nets.patch_whitening import PatchWhitening
from fasthebb.nets.readout import GRID
from fasthebb.nets.softhebb import Triangle
from fasthebb.precision import full_precision

UNITS = 400


class NegativeDistance(nn.Module):
    """-|x - c_k| of the input x at each position and the centre c_k of each unit: (B, D, H, W) -> (B, K, H, W).

    The centres start as random directions of length 1, so that no unit is far from all patches.

    Args:
        inputs, units: D and K.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.centres = nn.Conv2d(inputs, units, 1, bias=False)
        with torch.no_grad():
            directions_KD = self.centres.weight.normal_()
            directions_KD.div_(directions_KD.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        dot = self.centres(x)
        with full_precision(x):  # bf16 would lose the difference of large squares
            weight = self.centres.weight
            centre_squares = weight.square().sum((1, 2, 3)).reshape(-1, 1, 1)
            patch_squares = x.to(weight.dtype).square().sum(1, keepdim=True)
            # in place, as each further copy of these large maps costs as much as the product
            square = (-2 * dot.to(weight.dtype)).add_(centre_squares).add_(patch_squares)
            distance: Tensor = square.clamp_min_(1e-6).sqrt_()  # the square root has no gradient at 0
        return -distance


def triangle(
    *,
    channels: int,
    size: int,
    classes: int,
    width: float = 1.0,
    dropout: float = 0.5,
    kernel: int = 6,
    stride: int = 1,
    smoothing: float = 0.1,
) -> nn.Sequential:
    """Patches normalised for contrast and whitened -> 400 Triangle units -> batch norm -> a classifier of 4 x 4 means.

    The whitening is fitted before the first step, see `PatchWhitening.fit`; until then it only normalises.

    Args:
        channels, size: of the images, (channels, size, size); size >= kernel.
        classes: number of classes.
        width: factor on the number of units, > 0.
        dropout: probability before the classifier, in [0, 1).
        kernel, stride: size, >= 2, and distance, >= 1, of the patches.
        smoothing: of the whitening, > 0, relative to the mean variance.

    Raises:
        ValueError: images that are too small, or a value out of its range.
    """
    for name, value, above in (("kernel", kernel, 1), ("stride", stride, 0), ("smoothing", smoothing, 0)):
        if not value > above:
            raise ValueError(f"{name} must be above {above}, not {value}")
    if size < kernel:
        raise ValueError(f"images of {size} x {size} are too small for patches of {kernel} x {kernel}")
    units, grid = max(1, round(UNITS * width)), min(GRID, (size - kernel) // stride + 1)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Sequential(
        PatchWhitening(channels, kernel, stride, smoothing),
        NegativeDistance(channels * kernel**2, units),
        Triangle(),
        nn.BatchNorm2d(units),
    )
    layers["classifier"] = nn.Sequential(
        nn.AdaptiveAvgPool2d(grid), nn.Flatten(), nn.Dropout(dropout), nn.Linear(units * grid**2, classes)
    )
    return nn.Sequential(layers)
