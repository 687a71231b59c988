"""From uint8 pixels to a network's input: normalisation, and augmentation with random numbers of each image's own."""

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from fasthebb_cli.settings.pretrain import AUGMENTATIONS

RESCALE = 0.25  # "light": the size is multiplied by 1 +- this
ROTATION = 10.0  # "light": degrees, in both directions
TRANSLATION = 1 / 8  # fraction of the size, in all directions
TILT = 0.2  # "hard": perspective brings one side of the image nearer by up to this
COLOUR = 0.4  # "hard": brightness +- this (in deviations), contrast and saturation times 1 +- this
GREY = 0.1  # "hard": share of images that lose their colour
ALL = slice(None)


def to_float(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x / 255 - mean) / std as float32; images uint8 (B, C, S, S), mean and std (C,) on the same device."""
    return (images.float() / 255 - mean[:, None, None]) / std[:, None, None]


def augment(
    images: Tensor,
    kind: str,
    generator: torch.Generator,
    *,
    mirror: bool = True,
    total: int | None = None,
    part: slice = ALL,
) -> Tensor:
    """Changes each of the float images (B, C, S, S) at random.

    "none": nothing. "shift": moves by up to 1/8 of the size. "light" (the papers'): also rescales by up to 25 % and
    rotates by up to 10 degrees. "hard": as light, but rotates by any angle, tilts (perspective), changes brightness,
    contrast and saturation, and turns one image in ten grey. Places outside of an image are filled by reflection.

    Args:
        generator: on the CPU, so that the random numbers do not depend on the device.
        mirror: half of the images are flipped from left to right; False for images such as digits.
        total, part: the images are this part of a batch of `total` images, for all of which numbers are drawn.
    """
    if kind == "none":
        return images
    if kind not in AUGMENTATIONS:
        raise ValueError(f"unknown augmentation {kind!r}")
    total = len(images) if total is None else total
    transforms = _affine(total, generator, kind, mirror=mirror)[part].to(images.device, images.dtype)
    slants, colours = torch.rand(0), torch.rand(0)
    if kind == "hard":
        slants = torch.rand(total, 1, 1, 2, generator=generator)[part].to(images.device, images.dtype)
        colours = torch.rand(4, total, 1, 1, 1, generator=generator)[:, part].to(images.device, images.dtype)
    if len(images) == 0:
        return images
    grid = affine_grid(transforms, list(images.shape), align_corners=False)
    if kind == "hard":
        grid = _tilted(grid, slants)
    images = grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return _recoloured(images, colours) if kind == "hard" else images


def _affine(count: int, generator: torch.Generator, kind: str, *, mirror: bool) -> Tensor:
    """Affine maps (count, 2, 3) from coordinates in the new image to those in the old one, both in [-1, 1]."""
    draws = torch.rand(count, 5, generator=generator)
    flip = torch.where(draws[:, 0] < 0.5, -1.0, 1.0) if mirror else torch.ones(count)
    unit = draws[:, 1:] * 2 - 1
    if kind == "shift":
        unit[:, :2] = 0
    scale = 1 / (1 + RESCALE * unit[:, 0])
    angle = torch.deg2rad((180.0 if kind == "hard" else ROTATION) * unit[:, 1])
    shift = 2 * TRANSLATION * unit[:, 2:]  # coordinates have a range of 2
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([flip * cos, -flip * sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    return torch.stack(rows, 1)


def _tilted(grid: Tensor, draws: Tensor) -> Tensor:
    """Coordinates (B, H, W, 2) in perspective: divided by a depth that changes linearly across the image."""
    slant = TILT * (draws * 2 - 1)
    return grid / (1 + (slant * grid).sum(-1, keepdim=True))


def _recoloured(images: Tensor, draws: Tensor) -> Tensor:
    """Normalised images (B, C, S, S) with other brightness, contrast and saturation."""
    brightness, contrast, saturation = COLOUR * (2 * draws[:3] - 1)
    saturation = torch.where(draws[3] < GREY, -1, saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + brightness + (1 + contrast) * (images - mean)
    grey = images.mean(1, keepdim=True)
    return grey + (1 + saturation) * (images - grey)
