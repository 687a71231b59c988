"""Chooses a classifier and its numbers by what each labelled image would get if its own label were unknown.

Every candidate is scored by leaving out one labelled image after the other, in closed form: no validation label is
read. The best has the highest accuracy; among equals, the lowest cross-entropy of calibrated scores.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fasthebb.readout import graph, kernel
from fasthebb.readout import ridge as linear
from fasthebb.readout.calibration import best_gain, gain_for

SHARPNESS = (1.0, 3.0, 6.0)
RIDGE = (0.03, 0.3, 3.0)
LINEAR_RIDGE = (0.001, 0.01, 0.1, 1.0)
JUDGED = 1000  # most labelled images that candidates are judged on
REACH, NEIGHBOURS = 0.98, 10
TRUE_LABEL = 3.0  # weight of a true label beside pseudo-labels, whose weights are at most 1
PSEUDO_RIDGE = 0.1


@dataclass(frozen=True)
class Rows:
    """The labelled images' components, after whitening by views or without it.

    Args:
        copies_RLK: R rows of each of L images: first the image, then the mirror image if `scored` is 2, then views.
        scored: how many of them count when an image is scored.
        labels_L: classes.
    """

    copies_RLK: Tensor
    labels_L: Tensor
    scored: int
    classes: int

    @property
    def flat_MK(self) -> Tensor:
        return kernel.unit_rows(self.copies_RLK.flatten(0, 1))

    @property
    def targets_MC(self) -> Tensor:
        return kernel.targets(self.labels_L.repeat(len(self.copies_RLK)), self.classes)


@dataclass(frozen=True)
class Candidate:
    """A classifier with its numbers, and what leaving one out says of it.

    Args:
        top1: accuracy in [0, 1] of the left-out scores; loss: their cross-entropy with the best gain.
    """

    name: str
    numbers: dict[str, float]
    top1: float
    loss: float
    gain: float


def judged(name: str, numbers: dict[str, float], scores_LC: Tensor, labels_L: Tensor) -> Candidate:
    gain = best_gain(scores_LC, labels_L)
    right = (scores_LC.argmax(1) == labels_L).double().mean()
    return Candidate(name, numbers, float(right), float(F.cross_entropy(scores_LC.double() * gain, labels_L)), gain)


def kernel_candidates(
    rows: Rows, sharpness: Sequence[float] = SHARPNESS, ridge: Sequence[float] = RIDGE
) -> Iterator[Candidate]:
    rows = replace(rows, copies_RLK=rows.copies_RLK[:, :JUDGED], labels_L=rows.labels_L[:JUDGED])
    flat_MK, targets_MC = rows.flat_MK, rows.targets_MC
    copies = len(rows.copies_RLK)
    for sharp in sharpness:
        similar_MM = kernel.kernel(flat_MK, flat_MK, sharp)
        for strength in ridge:
            alpha_MC, inverse_MM = kernel.fit(similar_MM, targets_MC, strength)
            scores = kernel.left_out_scores(alpha_MC, inverse_MM, targets_MC, copies)[:, : rows.scored].mean(1)
            yield judged("kernel", {"sharpness": sharp, "ridge": strength}, scores, rows.labels_L)


def ridge_candidates(rows: Rows, strengths: Sequence[float] = LINEAR_RIDGE) -> Iterator[Candidate]:
    x_RLK = kernel.unit_rows(rows.copies_RLK.flatten(0, 1)).unflatten(0, (len(rows.copies_RLK), -1))
    sums = linear.products(x_RLK.flatten(0, 1), rows.targets_MC)
    few = slice(0, JUDGED)
    targets_LC = kernel.targets(rows.labels_L[few], rows.classes)
    for strength in strengths:
        weight_KC, inverse_KK = linear.fit(*sums, strength)
        scores = linear.left_out_scores(x_RLK[:, few], targets_LC, weight_KC, inverse_KK)[:, : rows.scored].mean(1)
        yield judged("ridge", {"ridge": strength}, scores, rows.labels_L[few])


def best(candidates: Sequence[Candidate]) -> Candidate:
    return max(candidates, key=lambda candidate: (candidate.top1, -candidate.loss))


@dataclass(frozen=True)
class Fitted:
    """Buffers of a `ClosedForm` network by name, and what was chosen, in words and numbers."""

    buffers: dict[str, Tensor]
    report: dict[str, Any]


def fitted(
    rows: Rows,
    map_DK: Tensor,
    *,
    whitening_KK: Tensor | None = None,
    everything_NK: Tensor | None = None,
    positions_L: Tensor | None = None,
    classifier: str = "auto",
    sharpness: float | None = None,
    ridge: float | None = None,
) -> Fitted:
    """The best classifier of those that are asked for, fitted on all labelled images.

    Args:
        map_DK: from features to the components that `rows` has.
        whitening_KK: Q, see `projection.view_whitening`; None: components stay as they are.
        everything_NK: the components of all images, for a graph; None: there is none.
        positions_L: of the labelled images in it.
        classifier: auto (kernel or propagation), kernel, propagation or ridge.
        sharpness, ridge: of the kernel, or of ridge; None: chosen.
    """
    white = rows if whitening_KK is None else replace(rows, copies_RLK=rows.copies_RLK @ whitening_KK.float())
    candidates: list[Candidate] = []
    if classifier == "ridge":
        candidates += ridge_candidates(white, LINEAR_RIDGE if ridge is None else (ridge,))
    if classifier in ("auto", "kernel"):
        sharp = SHARPNESS if sharpness is None else (sharpness,)
        candidates += kernel_candidates(white, sharp, RIDGE if ridge is None else (ridge,))
    if classifier in ("auto", "propagation") and everything_NK is not None and positions_L is not None:
        whole_NK = everything_NK if whitening_KK is None else everything_NK @ whitening_KK.float()
        graph_NN = graph.neighbour_graph(kernel.unit_rows(whole_NK), NEIGHBOURS)
        spread_NL = graph.spread(graph_NN, unit_columns(len(whole_NK), positions_L), REACH)
        scores = graph.left_out_scores(spread_NL[positions_L], rows.labels_L, rows.classes)
        candidates.append(judged("propagation", {}, scores, rows.labels_L))
    chosen = best(candidates)
    whole_map = map_DK if whitening_KK is None else map_DK @ whitening_KK.float()
    buffers = {"map": whole_map, "bias": torch.zeros(rows.classes), "rows": torch.empty(0)}
    if chosen.name == "kernel":
        similar_MM = kernel.kernel(white.flat_MK, white.flat_MK, chosen.numbers["sharpness"])
        buffers["weight"] = kernel.solve(similar_MM, rows.targets_MC, chosen.numbers["ridge"]).float()
        buffers["rows"] = white.flat_MK
        buffers["sharpness"] = torch.tensor(chosen.numbers["sharpness"])
    elif chosen.name == "ridge":
        sums = linear.products(white.flat_MK, white.targets_MC)
        buffers["weight"] = linear.fit(*sums, chosen.numbers["ridge"])[0].float()
    else:
        assert everything_NK is not None
        assert positions_L is not None
        soft_NC = graph.propagated(spread_NL, rows.labels_L, rows.classes)
        weight_KC = from_pseudo_labels(whole_NK, soft_NC, positions_L, rows)
        scores = kernel.unit_rows(whole_NK).double() @ weight_KC
        hits = chosen.top1 * len(rows.labels_L)
        chosen = replace(chosen, gain=gain_for(scores, (hits + 0.5) / (len(rows.labels_L) + 1)))
        buffers["weight"] = weight_KC.float()
    buffers["gain"] = torch.tensor(chosen.gain)
    report = {
        "expected_top1": chosen.top1,
        "expected_loss": chosen.loss,
        "chosen": {"classifier": chosen.name, **chosen.numbers},
        "candidates": [asdict(candidate) for candidate in candidates],
    }
    return Fitted(buffers, report)


def unit_columns(size: int, positions_L: Tensor) -> Tensor:
    """(size, L): column l is 1 at position l, else 0."""
    columns = torch.zeros(size, len(positions_L))
    columns[positions_L, torch.arange(len(positions_L))] = 1
    return columns


def from_pseudo_labels(z_NK: Tensor, soft_NC: Tensor, positions_L: Tensor, rows: Rows) -> Tensor:
    """Ridge regression on all images, each with the class that it got, weighted by how sure that is."""
    shares = soft_NC.clamp_min(0) / soft_NC.clamp_min(0).sum(1, keepdim=True).clamp_min(1e-30)
    pseudo_N = shares.argmax(1)
    top = shares.topk(min(2, rows.classes), dim=1).values
    weight_N = (top[:, 0] - top[:, -1]).double()
    pseudo_N[positions_L], weight_N[positions_L] = rows.labels_L, TRUE_LABEL
    x = kernel.unit_rows(z_NK).double()
    targets_NC = kernel.targets(pseudo_N, rows.classes)
    root_N1 = weight_N.sqrt()[:, None]
    return linear.fit(*linear.products(x * root_N1, targets_NC * root_N1), PSEUDO_RIDGE)[0]
