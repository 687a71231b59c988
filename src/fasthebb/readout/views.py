"""Random views of images: other pictures of the same thing. B images of C channels and S x S pixels.

A view is given by eight numbers in [0, 1) for each image, so that it depends on nothing but them. The numbers are a
hash of a seed and the image's index: the same on every device, in every batch and in every process.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

DRAWS = 8  # numbers that a view takes

GOLDEN, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # splitmix64, as signed integers

SHIFT = 1 / 8  # of the size
LIGHT = 0.4  # photograph: brightness and contrast are multiplied by 1 +- this
COLOUR = 0.7  # photograph: saturation is multiplied by 1 +- this
ROTATION = 14.0  # digit: degrees
SCALE, SHEAR = 0.15, 0.15  # digit: the size is multiplied by 1 +- SCALE; SHEAR is relative to the height


def draws(seed: int, view: int, index_B: Tensor) -> Tensor:
    """Numbers (B, DRAWS) in [0, 1), float32: 24 bits of splitmix64 (Steele, Lea and Flood 2014) of each one's place.

    Args:
        seed, view: any integers below 2^63; views of other numbers are independent.
        index_B: int64, which image of the data set each one is.
    """
    column_P = torch.arange(DRAWS, device=index_B.device)
    start = _mixed(torch.tensor(seed) + _mixed(torch.tensor(view) * GOLDEN)).to(index_B.device)
    bits_BP = _mixed(start + (index_B[:, None] * DRAWS + column_P) * GOLDEN)
    return _shifted(bits_BP, 40).float() / 2**24


def _shifted(bits: Tensor, by: int) -> Tensor:
    """int64 bits, moved to the right as if they had no sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _mixed(bits: Tensor) -> Tensor:
    bits = bits + GOLDEN
    bits = (bits ^ _shifted(bits, 30)) * FIRST
    bits = (bits ^ _shifted(bits, 27)) * SECOND
    return bits ^ _shifted(bits, 31)


def photograph(images: Tensor, draws_BP: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Half of the images are mirrored; all are moved by whole pixels, and get other light and colours.

    Args:
        images: float (B, C, S, S), normalised: (pixels in [0, 1] - mean) / std.
        draws_BP: (B, DRAWS), in [0, 1).
        mean, std: (C,).
    """
    size = images.shape[-1]
    most = int(SHIFT * size)
    flip = torch.where(draws_BP[:, 0] < 0.5, -1.0, 1.0)
    shift = ((draws_BP[:, 1:3] * (2 * most + 1)).floor() - most) * 2 / size
    zero = torch.zeros_like(flip)
    maps = torch.stack([torch.stack([flip, zero, shift[:, 0]], 1), torch.stack([zero, zero + 1, shift[:, 1]], 1)], 1)
    moved = _moved(images, maps)
    ranges = torch.tensor([LIGHT, LIGHT, COLOUR]).to(draws_BP)
    factors = (1 + ranges * (2 * draws_BP[:, 3:6] - 1)).reshape(-1, 3, 1, 1, 1)
    brightness, contrast, saturation = factors.unbind(1)
    pixels = (moved * std[:, None, None] + mean[:, None, None]) * brightness
    middle = pixels.mean((1, 2, 3), keepdim=True)
    pixels = middle + contrast * (pixels - middle)
    if images.shape[1] > 1:
        grey = pixels.mean(1, keepdim=True)
        pixels = grey + saturation * (pixels - grey)
    return (pixels.clamp(0, 1) - mean[:, None, None]) / std[:, None, None]


def digit(images: Tensor, draws_BP: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Rotated, scaled, sheared and moved, never mirrored; arguments as in `photograph`."""
    unit = 2 * draws_BP - 1
    angle, scale = unit[:, 0] * math.radians(ROTATION), 1 / (1 + SCALE * unit[:, 1])
    shear, shift = SHEAR * unit[:, 2], 2 * SHIFT * unit[:, 3:5]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    first = torch.stack([cos, shear * cos - sin, shift[:, 0]], 1)
    second = torch.stack([sin, shear * sin + cos, shift[:, 1]], 1)
    return _moved(images, torch.stack([first, second], 1))


def mirrored(images: Tensor) -> Tensor:
    return images.flip(-1)


VIEWS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {"photograph": photograph, "digit": digit}


def _moved(images: Tensor, maps: Tensor) -> Tensor:
    """Maps (B, 2, 3) from places in the new image to places in the old one, both in [-1, 1]; beyond it: reflected."""
    if not len(images):
        return images
    grid = affine_grid(maps.to(images.dtype), list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
