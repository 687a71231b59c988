"""The oracle: every rule as its paper writes it, one sample, one position, one unit after the other.

It shares nothing with the engine: patches are cut out by loops, responses are formulas on one patch and one weight
vector, updates are sums of one term a patch. Slow and plain on purpose; use it in float64.

Shapes: P patches, K units, D inputs of a unit. A group of a convolution is a layer of its own beside the others.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv2d


def update(layer: Layer, x: Tensor, rule: str, **options: float | str) -> Tensor:
    """dW of a layer (shape of its weight) for the inputs x it was called with."""
    x, weight = x.detach(), layer.weight.detach()
    if isinstance(layer, nn.Linear):
        return UPDATES[rule](list(x.reshape(-1, layer.in_features)), weight, **options)
    units = layer.out_channels // layer.groups
    channels = layer.in_channels // layer.groups
    parts = []
    for group in range(layer.groups):
        own_x = x[:, group * channels : (group + 1) * channels]
        own_w_KD = weight[group * units : (group + 1) * units].reshape(units, -1)
        parts.append(UPDATES[rule](list(patches(layer, own_x)), own_w_KD, **options))
    return torch.cat(parts).reshape(weight.shape)


def patches(layer: nn.Conv2d, x: Tensor) -> Iterator[Tensor]:
    """Every patch (D,) that a convolution sees of x (B, channels of one group, H, W), in the order of its output."""
    before, after = _padding(layer)
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    first = [range(0, x.shape[2 + i] + before[i] + after[i] - dilation[i] * (kernel[i] - 1), stride[i]) for i in (0, 1)]
    for image in x:
        for top in first[0]:
            for left in first[1]:
                pixels = [
                    _pixel(
                        image, top + i * dilation[0] - before[0], left + j * dilation[1] - before[1], layer.padding_mode
                    )
                    for i in range(kernel[0])
                    for j in range(kernel[1])
                ]
                yield torch.stack(pixels, dim=1).flatten()


def _padding(layer: nn.Conv2d) -> tuple[list[int], list[int]]:
    """Padding before and after, per axis; an odd total of "same" has its extra pixel after."""
    if layer.padding == "valid":
        return [0, 0], [0, 0]
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [t // 2 for t in total], [t - t // 2 for t in total]
    assert not isinstance(layer.padding, str)
    return list(layer.padding), list(layer.padding)


def _pixel(image: Tensor, row: int, column: int, mode: str) -> Tensor:
    """The channels at a position that may lie outside of the image."""
    height, width = image.shape[1:]
    if mode == "zeros":
        inside = 0 <= row < height and 0 <= column < width
        return image[:, row, column] if inside else torch.zeros_like(image[:, 0, 0])
    return image[:, _inside(row, height, mode), _inside(column, width, mode)]


def _inside(index: int, size: int, mode: str) -> int:
    if mode == "circular":
        return index % size
    if mode == "replicate":
        return min(max(index, 0), size - 1)
    assert mode == "reflect"
    return size - 1 - abs(size - 1 - abs(index))


def hpca(x_P: list[Tensor], w_KD: Tensor, denominator: str = "power", damping: float = 0.01) -> Tensor:
    """Lagani et al. 2022: dw_i = y_i (x - sum_{j<=i} y_j w_j), y_i = relu(x.w_i), over the patches."""
    numerator_KD = torch.zeros_like(w_KD)
    power = [0.0] * len(w_KD)
    for x in x_P:
        reconstruction = torch.zeros_like(x)
        for i, w in enumerate(w_KD):
            y = max(0.0, float(x @ w))
            reconstruction = reconstruction + y * w
            numerator_KD[i] += y * (x - reconstruction)
            power[i] += y**2
    if denominator == "patches":
        return numerator_KD / len(x_P)
    mean_power = sum(power) / len(power)
    return torch.stack([_divided(numerator_KD[i], power[i] + damping * mean_power) for i in range(len(w_KD))])


def swta(x_P: list[Tensor], w_KD: Tensor, temperature: float = 0.02) -> Tensor:
    """Lagani et al. 2022: dw_i = r_i (x - w_i), r = softmax of scores; the mean weighs patches by r_i."""
    numerator_KD = torch.zeros_like(w_KD)
    weight_of_patches = [0.0] * len(w_KD)
    for x in x_P:
        scores = [((_cosine(x, w) + 1) / 2) ** 2 for w in w_KD]
        exponentials = [math.exp(score / temperature) for score in scores]
        for i, w in enumerate(w_KD):
            r = exponentials[i] / sum(exponentials)
            step = r * (x - w)
            numerator_KD[i] += r * step
            weight_of_patches[i] += r
    return torch.stack([_divided(numerator_KD[i], weight_of_patches[i]) for i in range(len(w_KD))])


UPDATES: dict[str, Callable[..., Tensor]] = {"hpca": hpca, "swta": swta}


def _cosine(x: Tensor, w: Tensor) -> float:
    lengths = float(x.norm()) * float(w.norm())
    return float(x @ w) / lengths if lengths > 0 else 0.0


def _divided(numerator: Tensor, denominator: float) -> Tensor:
    return numerator / denominator if denominator != 0 else torch.zeros_like(numerator)
