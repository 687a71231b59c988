"""A unit's response to a patch, from the layer's pre-activation. Responses know nothing of rules or networks.

Shapes: B batch, G groups, K units of a group, L output positions. A linear layer has G = L = 1.
"""

from collections.abc import Callable
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


Response = Callable[[PreActivation], Tensor]


def rectified(pre: PreActivation) -> Tensor:
    """relu(x.w), >= 0: the response of nonlinear Hebbian PCA (Lagani et al. 2022, eq. 3)."""
    return F.relu(pre.dot_BGKL)


def cosine(pre: PreActivation) -> Tensor:
    """cos(x, w) in [-1, 1]; 0 where either vector is 0."""
    norm_BGKL = pre.patch_norm_BG1L * pre.weight_norm_GK1
    return torch.where(norm_BGKL > 0, pre.dot_BGKL / norm_BGKL, 0).clamp_(-1, 1)


def raised_cosine(pre: PreActivation) -> Tensor:
    """((cos(x, w) + 1) / 2)^2 in [0, 1]: the score over which soft winner-takes-all competes."""
    return ((cosine(pre) + 1) / 2).square()


RESPONSES: dict[str, Response] = {"rectified": rectified, "raised_cosine": raised_cosine}
