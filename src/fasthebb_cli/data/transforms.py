"""From uint8 pixels to what a network sees: normalisation, and augmentation with one draw per sample."""

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

RESCALE = 0.25  # "light": size times 1 +- this
ROTATION = 10.0  # degrees to either side
TRANSLATION = 1 / 8  # of the size, to either side
TILT = 0.2  # "hard": perspective makes one side of the image up to so much nearer
COLOUR = 0.4  # brightness moves by up to this (in deviations), contrast and saturation change by up to this factor
ALL = slice(None)
GREY = 0.1  # share of images that lose their colour


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
    """Float images (B, C, S, S), each changed at random; "none" returns them as they are.

    "shift": move by up to 1/8 of the size. "light" (the papers'): rescale by up to 25 %, rotate by up to 10 degrees and
    move as well. "hard": as light, but rotate by any angle, and tilt (perspective), change brightness, contrast and
    saturation, and take the colour from one image in ten. All flip half of the images from left to right if `mirror`;
    what lies outside is reflected. Draws are made on the CPU, so that they don't depend on the device.

    Args:
        generator: on the CPU.
        mirror: a mirrored image is of the same class (no for digits).
        total, part: the images are this part of a batch of so many, whose other images get draws of their own.
    """
    if kind == "none":
        return images
    if kind not in ("shift", "light", "hard"):
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
    """Affine maps (count, 2, 3) from a place in the new image to one in the old, both in [-1, 1]."""
    draws = torch.rand(count, 5, generator=generator)
    flip = torch.where(draws[:, 0] < 0.5, -1.0, 1.0) if mirror else torch.ones(count)
    unit = draws[:, 1:] * 2 - 1
    if kind == "shift":
        unit[:, :2] = 0
    scale = 1 / (1 + RESCALE * unit[:, 0])
    angle = torch.deg2rad((180.0 if kind == "hard" else ROTATION) * unit[:, 1])
    shift = 2 * TRANSLATION * unit[:, 2:]  # [-1, 1] spans the size twice over
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([flip * cos, -flip * sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    return torch.stack(rows, 1)


def _tilted(grid: Tensor, draws: Tensor) -> Tensor:
    """Places (B, H, W, 2) seen at a slant: divided by a depth that changes evenly across the image."""
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
