"""A unit's response to a patch, from the layer's pre-activation. Responses know nothing of rules or networks.

Shapes: B batch, G groups, K units of a group, L output positions. A linear layer has G = L = 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

UNITS = 2  # the dimension of y_BGKL along which units compete and are ordered


class PreActivation:
    """What a layer computed for its patches: x.w, and the lengths |x| and |w| when a response asks for them.

    Args:
        dot_BGKL: inner products x.w, without bias.
        weight_norm_GK1: lengths of the weight vectors.
        patch_norm: computes the lengths |x| of the patches, (B, G, 1, L); called once, if at all.
    """

    def __init__(self, dot_BGKL: Tensor, weight_norm_GK1: Tensor, patch_norm: Callable[[], Tensor]) -> None:
        self.dot_BGKL = dot_BGKL
        self.weight_norm_GK1 = weight_norm_GK1
        self._patch_norm = patch_norm

    @cached_property
    def patch_norm_BG1L(self) -> Tensor:
        return self._patch_norm()


@dataclass
class Moments:
    """Running first and second moment of each unit's response over all patches, (1, G, K, 1)."""

    mean: Tensor
    mean_square: Tensor

    @property
    def variance(self) -> Tensor:
        return (self.mean_square - self.mean.square()).clamp_min(0)

    def moved_to(self, batch: "Moments", momentum: float) -> "Moments":
        """An exponential mean: a step of size momentum towards the batch."""
        return Moments(self.mean.lerp(batch.mean, momentum), self.mean_square.lerp(batch.mean_square, momentum))

    @classmethod
    def of(cls, y_BGKL: Tensor) -> "Moments":
        """Those of one batch."""
        return cls(y_BGKL.mean((0, 3), keepdim=True), y_BGKL.square().mean((0, 3), keepdim=True))


Response = Callable[[PreActivation], Tensor]


def dot(pre: PreActivation) -> Tensor:
    """x.w: the response of linear rules."""
    return pre.dot_BGKL


def rectified(pre: PreActivation) -> Tensor:
    """relu(x.w), >= 0: the response of nonlinear Hebbian PCA (Lagani et al. 2022, eq. 3)."""
    return F.relu(pre.dot_BGKL)


def tanh(pre: PreActivation) -> Tensor:
    """tanh(x.w) in (-1, 1)."""
    return pre.dot_BGKL.tanh()


def projection(pre: PreActivation) -> Tensor:
    """x.w / |w|, in units of the patch; 0 where the weights are 0."""
    return torch.where(pre.weight_norm_GK1 > 0, pre.dot_BGKL / pre.weight_norm_GK1, 0)


def cosine(pre: PreActivation) -> Tensor:
    """cos(x, w) in [-1, 1]; 0 where either vector is 0."""
    norm_BGKL = pre.patch_norm_BG1L * pre.weight_norm_GK1
    return torch.where(norm_BGKL > 0, pre.dot_BGKL / norm_BGKL, 0).clamp_(-1, 1)


def raised_cosine(pre: PreActivation) -> Tensor:
    """((cos(x, w) + 1) / 2)^2 in [0, 1]: the score over which soft winner-takes-all competes."""
    return ((cosine(pre) + 1) / 2).square()


def angular(pre: PreActivation) -> Tensor:
    """1 - angle(x, w) / pi in [0, 1]: falls evenly with the angle; 1/2 where either vector is 0."""
    return 1 - cosine(pre).acos() / math.pi


RESPONSES: dict[str, Response] = {
    "dot": dot, "rectified": rectified, "tanh": tanh, "projection": projection, "cosine": cosine,
    "raised_cosine": raised_cosine, "angular": angular,
}  # fmt: skip
