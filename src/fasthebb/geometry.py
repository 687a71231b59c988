"""The geometry of a layer: its patches, positions and groups, for any stride, padding, dilation and memory format.

Shapes: N patches (samples x positions), D inputs of a unit, G groups, K units of a group; B batch, P positions.
"""

from torch import Tensor, nn
from torch.nn import functional as F

Layer = nn.Linear | nn.Conv2d


def patches(layer: Layer, x: Tensor) -> Tensor:
    """The patches that the units see, (N, D); for a layer of one group."""
    if isinstance(layer, nn.Linear) or covers_input(layer, x):
        return x.reshape(-1, layer.weight[0].numel())
    x, padding = padded(layer, x)
    columns_BDP = F.unfold(x, layer.kernel_size, layer.dilation, tuple(padding), layer.stride)
    return columns_BDP.transpose(1, 2).reshape(-1, columns_BDP.shape[1])


def patch_norm(layer: Layer, x: Tensor) -> Tensor:
    """The length |x| of each patch, (N, G, 1)."""
    if isinstance(layer, nn.Linear):
        norm_N: Tensor = x.reshape(-1, x.shape[-1]).norm(dim=1)
        return norm_N.reshape(-1, 1, 1)
    x, padding = padded(layer, x)
    energy_BGHW = x.unflatten(1, (layer.groups, -1)).norm(dim=2).square_()  # reads x once, and writes no squares
    ones = energy_BGHW.new_ones(1, 1, *layer.kernel_size)
    flat = energy_BGHW.reshape(-1, 1, *x.shape[2:])
    energy = F.conv2d(flat, ones, None, layer.stride, padding, layer.dilation)
    energy = energy.reshape(len(x), layer.groups, energy.shape[-2] * energy.shape[-1]).clamp_(min=0).sqrt_()
    return energy.transpose(1, 2).reshape(-1, layer.groups, 1)


def groups_of(layer: Layer) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def per_row(values: Tensor, weight: Tensor) -> Tensor:
    """One value for each unit, in any shape, reshaped so that it multiplies the weight row by row."""
    return values.reshape(-1, *[1] * (weight.dim() - 1))


def per_unit(layer: Layer, values_K: Tensor) -> Tensor:
    """One value for each unit, reshaped so that it multiplies the layer's output unit by unit."""
    return values_K.reshape(-1, 1, 1) if isinstance(layer, nn.Conv2d) else values_K


def by_patch(layer: Layer, output: Tensor) -> Tensor:
    """A layer's output, (B, channels, H, W) or (..., units), as (N, G, K); a view if it is in channels_last."""
    if isinstance(layer, nn.Linear):
        return output.reshape(-1, 1, output.shape[-1])
    return output.movedim(1, -1).reshape(-1, layer.groups, output.shape[1] // layer.groups)


def padded(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, list[int]]:
    """The input and the padding that a plain convolution needs.

    Zeros on both sides are left to the convolution. Any other padding is written into the input.
    """
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return x, list(layer.padding)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, layer._reversed_padding_repeated_twice, mode), [0, 0]


def output_size(layer: nn.Conv2d, x: Tensor, padding: list[int]) -> list[int]:
    """Height and width of the layer's output."""
    return [
        (x.shape[2 + i] + 2 * padding[i] - layer.dilation[i] * (layer.kernel_size[i] - 1) - 1) // layer.stride[i] + 1
        for i in range(2)
    ]


def covers_input(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether the kernel is as large as its unpadded input: then there is one patch a sample, as in a linear layer."""
    unpadded = layer.padding == (0, 0) or layer.padding == "valid"
    return unpadded and layer.groups == 1 and layer.dilation == (1, 1) and tuple(x.shape[2:]) == layer.kernel_size
