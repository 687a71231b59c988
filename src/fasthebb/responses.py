"""The response of a unit to a patch, computed from the layer's pre-activation. Knows no rule and no network.

Shapes: N patches (samples x output positions), G groups, K units of a group. A linear layer has G = 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

UNITS = -1  # the dimension of y_NGK along which units compete and are ordered


@dataclass(frozen=True)
class PreActivation:
    """What a response is computed from.

    Args:
        dot_NGK: inner products x.w, without bias.
        weight_norm_GK: lengths |w|, for the responses in WITH_LENGTHS; None: `dot_NGK` is x.w / |w| already.
        patch_norm_NG1: lengths |x|, for the responses in WITH_LENGTHS.
        weight_square_GK: |w|^2; None, except for the responses in WITH_SQUARES.
    """

    dot_NGK: Tensor
    weight_norm_GK: Tensor | None = None
    patch_norm_NG1: Tensor | None = None
    weight_square_GK: Tensor | None = None


@dataclass
class Moments:
    """Running mean, second moment and variance of each unit's response over all patches, each (G, K).

    The variance is the mean of the batches' variances, as in batch norm. So it does not contain the drift of the mean
    from batch to batch.
    """

    mean: Tensor
    mean_square: Tensor
    variance: Tensor

    def move_to_(self, batch: "Moments", momentum: float) -> None:
        """Exponential moving average, in place: self += momentum (batch - self), with momentum in [0, 1]."""
        self.mean.lerp_(batch.mean, momentum)
        self.mean_square.lerp_(batch.mean_square, momentum)
        self.variance.lerp_(batch.variance, momentum)

    @classmethod
    def of(cls, y_NGK: Tensor) -> "Moments":
        """Moments of one batch's responses, N >= 1."""
        return cls.from_means(y_NGK.mean(0), y_NGK.square().mean(0))

    @classmethod
    def from_means(cls, mean: Tensor, mean_square: Tensor) -> "Moments":
        """From the means of y and of y^2, each (G, K)."""
        return cls(mean, mean_square, (mean_square - mean.square()).clamp_min(0))


Response = Callable[[PreActivation], Tensor]


def dot(pre: PreActivation) -> Tensor:
    """x.w: the response of linear rules."""
    return pre.dot_NGK


def rectified(pre: PreActivation) -> Tensor:
    """relu(x.w), >= 0: the response of nonlinear Hebbian PCA (Lagani et al. 2022, eq. 3)."""
    return F.relu(pre.dot_NGK)


def tanh(pre: PreActivation) -> Tensor:
    """tanh(x.w) in (-1, 1)."""
    return pre.dot_NGK.tanh()


def projection(pre: PreActivation) -> Tensor:
    """x.w / |w|; 0 where the weights are 0."""
    return pre.dot_NGK if pre.weight_norm_GK is None else pre.dot_NGK * _inverse(pre.weight_norm_GK)


def cosine(pre: PreActivation) -> Tensor:
    """cos(x, w) in [-1, 1]; 0 where either vector is 0."""
    return (projection(pre) * _inverse(pre.patch_norm_NG1)).clamp_(-1, 1)


def raised_cosine(pre: PreActivation) -> Tensor:
    """((cos(x, w) + 1) / 2)^2 in [0, 1]: the score of the winner-takes-all rules (Lagani et al. 2022)."""
    half_NG1 = 0.5 * _inverse(pre.patch_norm_NG1)
    return (projection(pre) * half_NG1).add_(0.5).square_()


def angular(pre: PreActivation) -> Tensor:
    """1 - angle(x, w) / pi in [0, 1]: it falls linearly with the angle; 1/2 where either vector is 0."""
    return 1 - cosine(pre).acos() / math.pi


def nearness(pre: PreActivation) -> Tensor:
    """x.w - |w|^2 / 2 = (|x|^2 - |x - w|^2) / 2: it is largest for the unit whose weights are nearest to the patch."""
    assert pre.weight_square_GK is not None, "the response needs squares: see WITH_SQUARES"
    return pre.dot_NGK - pre.weight_square_GK / 2


def _inverse(norm: Tensor | None) -> Tensor:
    assert norm is not None, "the response needs lengths: see WITH_LENGTHS"
    return torch.where(norm > 0, norm.reciprocal(), 0)


RESPONSES: dict[str, Response] = {
    "dot": dot, "rectified": rectified, "tanh": tanh, "projection": projection, "cosine": cosine,
    "raised_cosine": raised_cosine, "angular": angular, "nearness": nearness,
}  # fmt: skip
WITH_LENGTHS: tuple[Response, ...] = (projection, cosine, raised_cosine, angular)
WITH_SQUARES: tuple[Response, ...] = (nearness,)
