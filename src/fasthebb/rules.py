"""The learning rules, each as one short pure function: response -> gate, recombination, mask, denominator.

The update of a layer, for its patches n (samples x positions), units k and inputs d, is

    numerator   = G^T X - mask(G^T R) W        (K, D)      (N W in place of G^T X for independent components)
    denominator = sum_n S  (per unit), or the number of patches where S is None
    dW          = numerator / denominator

where the rule chooses gate G, recombination R and share S. A rule never sees a module, a device or a loop.
Shapes as in responses.py: y_NGK, where the letter G in a shape is the number of groups; units along dimension UNITS.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from fasthebb.responses import UNITS, Moments

Mask = Literal["tril", "diag", "full", "none"]
Denominator = Literal["patches", "power"]


@dataclass(frozen=True)
class Terms:
    """What a rule returns: the terms of the update, for every patch and unit.

    Args:
        gate: G, (N, G, K): how strongly the unit learns from the patch.
        recombination: R, (N, G, K): the unit's weight in the reconstruction of the patch; None: 1.
        mask: the units whose reconstruction is subtracted from the patch before the unit learns from it: "tril" the
            unit itself and those before it, "diag" the unit itself, "full" all units, "none" no unit.
        share: sum over patches of the unit's share S, (G, K), which is its denominator; None: the number of patches.
        total: sum over patches of G R, (G, K), from a rule that has it at hand; None: it is computed.
        power: the denominator is sum_n G R of the unit instead.
        damping: fraction, >= 0, of the units' mean denominator that is added to each, so that quiet units stay stable.
        largest: the denominator is the largest |numerator| of the group instead, one number.
        towards: what the units move towards: "patches", G^T X; "weights", N W, for rules whose weights grow by
            themselves; or "nothing".
        tangent: keep only the part of the update at right angles to the unit's weights, for weights of length 1.
        competitive: units compete for each patch; a unit that never has the largest gate counts as dead.
    """

    gate: Tensor
    recombination: Tensor | None = None
    mask: Mask = "diag"
    share: Tensor | None = None
    total: Tensor | None = None
    power: bool = False
    damping: float = 0.0
    largest: bool = False
    towards: Literal["patches", "weights", "nothing"] = "patches"
    tangent: bool = False
    competitive: bool = False


def check_terms(terms: object, y_NGK: Tensor) -> None:
    """Checks what a rule returns for a response.

    Raises:
        ValueError: it is no Terms, or a field is of another type, shape or range than `Terms` says.
    """
    if not isinstance(terms, Terms):
        raise ValueError(f"the rule must return Terms, not {type(terms).__name__}")
    units = tuple(y_NGK.shape)
    for name, value, shape in (
        ("gate", terms.gate, units), ("recombination", terms.recombination, units),
        ("share", terms.share, units[1:]), ("total", terms.total, units[1:]),
    ):  # fmt: skip
        if value is None and name != "gate":
            continue
        if not isinstance(value, Tensor) or value.dtype != y_NGK.dtype or value.layout != y_NGK.layout:
            what = f"{value.dtype}, {value.layout}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"Terms.{name} must be a tensor of {y_NGK.dtype}, as the response is, not {what}")
        if tuple(value.shape) != shape or value.device != y_NGK.device:
            raise ValueError(
                f"Terms.{name} must have the shape {shape} for a response of {units}, not {tuple(value.shape)}"
            )
    for name, choices in (("mask", get_args(Mask)), ("towards", TOWARDS)):
        value = getattr(terms, name)
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"Terms.{name} must be one of {', '.join(choices)}, not {str(value)[:80]}")
    for name in ("power", "largest", "tangent", "competitive"):
        if not isinstance(getattr(terms, name), bool):
            raise ValueError(f"Terms.{name} must be true or false, not {str(getattr(terms, name))[:80]}")
    damping = terms.damping
    if isinstance(damping, bool) or not isinstance(damping, int | float) or not 0 <= damping < math.inf:
        raise ValueError(f"Terms.damping must be a number of at least 0, not {str(damping)[:80]}")


Rule = Callable[..., Terms]
TOWARDS = ("patches", "weights", "nothing")
OUT = -1e6  # response of a unit that does not compete: it never wins, and 0 times its square is 0, as it is finite


def hpca(y_NGK: Tensor, *, denominator: Denominator = "power", damping: float = 0.5) -> Terms:
    """Nonlinear Hebbian PCA: units learn the principal axes of their input, in order of variance.

    dw_i = sum_n y_i (x - sum_{j<=i} y_j w_j) / denominator; Lagani et al. 2022 (arXiv 2207.03172), after Sanger 1989.

    Args:
        y_NGK: relu(x.w), or tanh(x.w).
        denominator: "patches" divides by N, as in the papers. "power" divides unit i by sum_n y_i^2, so that the step
            does not depend on the unit's variance, which spans decades.
        damping: with "power", the fraction, >= 0, of the units' mean power that is added to each unit's own.

    Raises:
        ValueError: another denominator, or a negative damping.
    """
    if denominator == "patches":
        return Terms(gate=y_NGK, recombination=y_NGK, mask="tril")
    if denominator != "power":
        raise ValueError(f"denominator must be patches or power, not {denominator!r}")
    if damping < 0:
        raise ValueError(f"damping must be at least 0, not {damping}")
    return Terms(gate=y_NGK, recombination=y_NGK, mask="tril", power=True, damping=damping)


def hpca_adaptive(
    s_NGK: Tensor, running: Moments, *, denominator: Denominator = "power", damping: float = 0.5
) -> Terms:
    """HPCA on y = sigma tanh((s - mu) / sigma + mu), with running mean mu and deviation sigma of s = x.w.

    Source: the authors' public code. The tanh saturates at the scale of the unit's own response.
    """
    sigma = running.variance.sqrt().clamp_min(1e-6)
    y_NGK = sigma * torch.tanh((s_NGK - running.mean) / sigma + running.mean)
    return hpca(y_NGK, denominator=denominator, damping=damping)


def oja(y_NGK: Tensor) -> Terms:
    """Each unit alone finds the first principal axis: dw_i = y_i (x - y_i w_i), y = x.w (Oja 1982)."""
    return Terms(gate=y_NGK, recombination=y_NGK, mask="diag")


def gha(y_NGK: Tensor) -> Terms:
    """Generalised Hebbian algorithm, linear PCA in order: dw_i = y_i (x - sum_{j<=i} y_j w_j) (Sanger 1989)."""
    return Terms(gate=y_NGK, recombination=y_NGK, mask="tril")


def subspace(y_NGK: Tensor) -> Terms:
    """Units span the first K principal axes, in no order: dw_i = y_i (x - sum_j y_j w_j) (Oja 1989)."""
    return Terms(gate=y_NGK, recombination=y_NGK, mask="full")


def instar(y_NGK: Tensor) -> Terms:
    """dw_i = y_i (x - w_i), y = relu(x.w): weights become the mean patch, weighted by response (Grossberg 1976)."""
    return Terms(gate=y_NGK)


def hebb(y_NGK: Tensor) -> Terms:
    """dw_i = y_i x, y = x.w (Hebb 1949). Weights only grow: normalise them after each step."""
    return Terms(gate=y_NGK, mask="none")


def bcm(y_NGK: Tensor, running: Moments) -> Terms:
    """dw_i = y_i (y_i - theta_i) x, y = relu(x.w), theta a running mean of y^2 (Bienenstock, Cooper, Munro 1982).

    The rule strengthens responses above the threshold theta and weakens those below it: units become selective.
    """
    return Terms(gate=y_NGK * (y_NGK - running.mean_square), mask="none")


def swta(y_NGK: Tensor, *, temperature: float = 0.02) -> Terms:
    """Soft winner-takes-all: units compete for each patch and move towards the patches that they win.

    dw_i = sum_n r_i^2 (x - w_i) / sum_n r_i with r = softmax over units of y / temperature;
    Lagani et al. 2022 (arXiv 2207.03172): the batch mean of r (x - w), weighted by r.

    Args:
        y_NGK: scores in [0, 1], ((cos(x, w) + 1) / 2)^2.
        temperature: > 0; towards 0 the rule becomes k-means.

    Raises:
        ValueError: temperature <= 0.
    """
    _positive("temperature", temperature)
    r_NGK = torch.softmax(y_NGK / temperature, dim=UNITS)
    share_GK = r_NGK.sum(0)
    return Terms(gate=r_NGK.square_(), share=share_GK, competitive=True)


def pswta(y_NGK: Tensor, *, power: float = 0.05) -> Terms:
    """Soft winner-takes-all with r = y^(1/p) / sum_k y_k^(1/p); the rest as in swta. Source: the authors' public code.

    Args:
        y_NGK: scores in [0, 1].
        power: p > 0; towards 0 the rule becomes k-means.

    Raises:
        ValueError: p <= 0.
    """
    _positive("power", power)
    r_NGK = torch.softmax(y_NGK.clamp_min(0).log() / power, dim=UNITS)
    r_NGK = torch.where((y_NGK > 0).any(UNITS, keepdim=True), r_NGK, 0)  # no shares where all scores are 0
    share_GK = r_NGK.sum(0)
    return Terms(gate=r_NGK.square_(), share=share_GK, competitive=True)


def kwta(y_NGK: Tensor, *, k: int = 5) -> Terms:
    """k winners take all: the k best units of each patch move towards it, dw_i = mean over its patches of x - w_i.

    Source: the authors' public code. All units that tie with the k-th best win. With k = 1 it is a step of k-means.

    Args:
        y_NGK: scores.
        k: number of winners for each patch, >= 1.

    Raises:
        ValueError: k < 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    least = y_NGK.topk(min(k, y_NGK.shape[UNITS]), dim=UNITS).values.narrow(UNITS, -1, 1)
    won_NGK = ((y_NGK >= least) & (y_NGK > OUT)).to(y_NGK.dtype)
    return Terms(gate=won_NGK, share=won_NGK.sum(0), competitive=True)


def hwta(y_NGK: Tensor) -> Terms:
    """The winner takes all: kwta with one winner."""
    return kwta(y_NGK, k=1)


def kmeans(y_NGK: Tensor) -> Terms:
    """k-means by mini-batches: the nearest unit takes the patch, dw_i = mean over its patches of x - w_i.

    With the patches of a whole data set and lr = 1 it is a step of Lloyd's algorithm (1957, published 1982); with less,
    the mini-batch form of Sculley 2010 at a rate that is the same for all units. A unit that wins no patch of a batch
    stays where it is. To leave few such dead units, start from short weights of about equal length: then directions
    alone decide at first, and hardly any unit is far from all patches. All units that tie for a patch win it.

    Args:
        y_NGK: x.w - |w|^2 / 2, which is largest for the nearest unit. Weights keep their lengths: they are centres.
    """
    won_NGK = ((y_NGK == y_NGK.amax(UNITS, keepdim=True)) & (y_NGK > OUT)).to(y_NGK.dtype)
    return Terms(gate=won_NGK, share=won_NGK.sum(0), competitive=True)


def softhebb(u_NGK: Tensor, *, temperature: float = 1.0) -> Terms:
    """SoftHebb with anti-Hebbian losers (Journé et al., ICLR 2023): dw_i = y_i (x - u_i w_i) / max |dw|.

    y = softmax over units of u / temperature, u = x.w; for all units but the patch's winner, y is negated.

    Args:
        u_NGK: x.w.
        temperature: > 0.

    Raises:
        ValueError: temperature <= 0.
    """
    _positive("temperature", temperature)
    y_NGK = torch.softmax(u_NGK / temperature, dim=UNITS)
    wins = u_NGK == u_NGK.amax(UNITS, keepdim=True)
    return Terms(gate=torch.where(wins, y_NGK, -y_NGK), recombination=u_NGK, largest=True, competitive=True)


def ica(s_NGK: Tensor, *, normalised: bool = False) -> Terms:
    """Independent components by natural gradient: dW = (I - E[tanh(s) s^T]) W, s = W x (Amari et al. 1996).

    Args:
        normalised: for weights that are kept at length 1: dw_i = (v_i.w_i) w_i - v_i with v = E[tanh(s) s^T] W, which
            is at right angles to w_i. Source: the derivation in the authors' public code.
    """
    towards: Literal["weights", "nothing"] = "nothing" if normalised else "weights"
    return Terms(gate=s_NGK.tanh(), recombination=s_NGK, mask="full", towards=towards, tangent=normalised)


def hica(s_NGK: Tensor, *, normalised: bool = False) -> Terms:
    """Independent components one after the other: as ica, but a unit sees only itself and the units before it."""
    return replace(ica(s_NGK, normalised=normalised), mask="tril")


def hebbian_classifier(teacher_NGK: Tensor) -> Terms:
    """A class's weights become the mean of its inputs: gate 1 for the unit of the right class, 0 for the others.

    Args:
        teacher_NGK: one-hot labels, a unit for each class.
    """
    return Terms(gate=teacher_NGK, share=teacher_NGK.sum(0))


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, not {value}")
