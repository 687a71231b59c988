"""The learning rules, each as one short pure function: response -> gate, recombination, mask, denominator.

A layer's update for all its patches n (samples x positions), units k and inputs d is

    numerator   = G^T X - mask(G^T R) W        (K, D)
    denominator = sum_n S  (per unit), or the number of patches where S is None
    dW          = numerator / denominator

with gate G, recombination R and share S chosen by the rule. A rule never sees a module, a device or a loop.
Shapes as in responses.py: y_BGKL, units along dimension UNITS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fasthebb_cli.hebb.responses import UNITS

Mask = Literal["tril", "diag"]


@dataclass(frozen=True)
class Terms:
    """What a rule says of every patch and unit. All tensors are (B, G, K, L).

    Args:
        gate: G, how strongly the unit learns from the patch.
        recombination: R, the weights with which the masked units rebuild the patch; None means 1.
        mask: "tril": a unit sees the reconstruction by itself and the units before it; "diag": by itself alone.
        share: S, summed over patches it is the unit's denominator; None means the number of patches.
        damping: fraction of the mean denominator over units that is added to each, so that quiet units stay stable.
    """

    gate: Tensor
    recombination: Tensor | None
    mask: Mask
    share: Tensor | None = None
    damping: float = 0.0


Rule = Callable[..., Terms]


def hpca(y_BGKL: Tensor, *, denominator: Literal["patches", "power"] = "power", damping: float = 0.01) -> Terms:
    """Nonlinear Hebbian PCA: units learn the principal axes of their input, in order of variance.

    dw_i = sum_n y_i (x - sum_{j<=i} y_j w_j) / denominator; Lagani et al. 2022 (arXiv 2207.03172), after Sanger 1989.

    Args:
        y_BGKL: relu(x.w).
        denominator: "patches" divides by N, as in the papers; "power" divides unit i by sum_n y_i^2, which makes the
            step independent of the unit's variance (of order 1 along each axis instead of spanning decades).
        damping: with "power", the fraction of the units' mean power added to each unit's own.
    """
    if denominator == "patches":
        return Terms(gate=y_BGKL, recombination=y_BGKL, mask="tril")
    return Terms(gate=y_BGKL, recombination=y_BGKL, mask="tril", share=y_BGKL.square(), damping=damping)


def swta(y_BGKL: Tensor, *, temperature: float = 0.02) -> Terms:
    """Soft winner-takes-all: units compete for each patch and move towards the patches that they win.

    dw_i = sum_n r_i^2 (x - w_i) / sum_n r_i with r = softmax over units of y / temperature;
    Lagani et al. 2022 (arXiv 2207.03172): the batch mean of r (x - w) weighted by r.

    Args:
        y_BGKL: scores in [0, 1], ((cos(x, w) + 1) / 2)^2.
        temperature: > 0; towards 0 the rule becomes k-means.
    """
    r_BGKL = torch.softmax(y_BGKL / temperature, dim=UNITS)
    return Terms(gate=r_BGKL.square(), recombination=None, mask="diag", share=r_BGKL)


RULES: dict[str, Rule] = {"hpca": hpca, "swta": swta}
