"""From uint8 pixels to what a network sees: normalisation, and augmentation with one draw per sample."""

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

RESCALE = 0.25  # "light": size times 1 +- this
ROTATION = 10.0  # degrees to either side
TRANSLATION = 1 / 8  # of the size, to either side


def to_float(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x / 255 - mean) / std as float32; images uint8 (B, C, S, S), mean and std (C,) on the same device."""
    return (images.float() / 255 - mean[:, None, None]) / std[:, None, None]


def augment(images: Tensor, kind: str, generator: torch.Generator, *, mirror: bool = True) -> Tensor:
    """Float images (B, C, S, S), each changed at random; "none" returns them as they are.

    "shift": move by up to 1/8 of the size. "light" (the papers'): rescale by up to 25 %, rotate by up to 10 degrees and
    move as well. Both flip half of the images from left to right if `mirror`; what lies outside is reflected. Draws are
    made on the CPU, so that they don't depend on the device.

    Args:
        generator: on the CPU.
        mirror: a mirrored image is of the same class (no for digits).
    """
    if kind == "none":
        return images
    if kind not in ("shift", "light"):
        raise ValueError(f"unknown augmentation {kind!r}")
    transforms = _affine(len(images), generator, kind, mirror=mirror).to(images.device, images.dtype)
    grid = affine_grid(transforms, list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _affine(count: int, generator: torch.Generator, kind: str, *, mirror: bool) -> Tensor:
    """Affine maps (count, 2, 3) from a place in the new image to one in the old, both in [-1, 1]."""
    draws = torch.rand(count, 5, generator=generator)
    flip = torch.where(draws[:, 0] < 0.5, -1.0, 1.0) if mirror else torch.ones(count)
    unit = draws[:, 1:] * 2 - 1
    if kind == "shift":
        unit[:, :2] = 0
    scale = 1 / (1 + RESCALE * unit[:, 0])
    angle = torch.deg2rad(ROTATION * unit[:, 1])
    shift = 2 * TRANSLATION * unit[:, 2:]  # [-1, 1] spans the size twice over
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([flip * cos, -flip * sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    return torch.stack(rows, 1)
