"""Responses on given inner products and lengths."""

import torch
from torch import Tensor

from fasthebb_cli.hebb.responses import PreActivation, cosine, raised_cosine, rectified


def pre_activation(dot: list[float], weight_norm: list[float], patch_norm: float) -> PreActivation:
    """One patch before several units."""
    units = len(dot)
    return PreActivation(
        torch.tensor(dot).reshape(1, 1, units),
        torch.tensor(weight_norm).reshape(1, units),
        lambda: torch.full((1, 1, 1), patch_norm),
    )


def test_values() -> None:
    pre = pre_activation([2.0, 0.0, -1.0, -2.0], [1.0, 1.0, 1.0, 1.0], 2.0)
    assert rectified(pre).flatten().tolist() == [2, 0, 0, 0]
    assert cosine(pre).flatten().tolist() == [1, 0, -0.5, -1]
    assert raised_cosine(pre).flatten().tolist() == [1, 0.25, 0.0625, 0]


def test_zero_lengths_have_cosine_0() -> None:
    assert cosine(pre_activation([0.0, 1.0], [0.0, 1.0], 1.0)).flatten().tolist() == [0, 1]
    assert cosine(pre_activation([0.0, 0.0], [0.0, 1.0], 0.0)).flatten().tolist() == [0, 0]


def test_rounding_does_not_leave_the_range() -> None:
    """Inner products are a product of lengths up to rounding alone."""
    above, below = 1 + 1e-6, -1 - 1e-6
    pre = pre_activation([above, below], [1.0, 1.0], 1.0)
    assert cosine(pre).flatten().tolist() == [1, -1]


def test_lengths_of_patches_are_computed_when_asked_for_and_once() -> None:
    calls = []

    def patch_norm() -> Tensor:
        calls.append(1)
        return torch.ones(1, 1, 1)

    pre = PreActivation(torch.ones(1, 1, 2), torch.ones(1, 2), patch_norm)
    rectified(pre)
    assert not calls
    cosine(pre)
    raised_cosine(pre)
    assert len(calls) == 1
