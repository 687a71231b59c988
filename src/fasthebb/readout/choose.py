"""Fits the best classifier for the labels there are; see candidates.py for how it is found.

Few labels: `fitted` compares with all rows of labelled images. Many: `fitted_to_many` compares with landmarks. More
than memory holds: `basis` chooses these, all rows are added up in one more pass, and `fitted_to_sums` solves the sums.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fasthebb.readout import graph, kernel
from fasthebb.readout import ridge as linear
from fasthebb.readout.calibration import gain_for
from fasthebb.readout.candidates import (
    JUDGED,
    LINEAR_RIDGE,
    RIDGE,
    RIDGE_OF_MANY,
    SHARPNESS,
    Candidate,
    Rows,
    best,
    both_of,
    expected_top1,
    inputs,
    judged,
    kernel_candidates,
    sum_candidates,
)
from fasthebb.readout.ridge import Products

REACH = (0.9, 0.98)  # of labels over the graph: how much of its score an image has from its neighbours
NEIGHBOURS = 10
PRIOR = 10  # labels of each class that are added to those there are, before they say how frequent the classes are
TRUE_LABEL = 3.0  # weight of a true label beside pseudo-labels, whose weights are at most 1
PSEUDO_RIDGE = 0.1
CHUNK = 4096  # rows that are weighted at once
TRIED_LANDMARKS = 2000  # most that are used to choose a sharpness


@dataclass(frozen=True)
class Fitted:
    """Buffers of a `ClosedForm` network by name, and what was chosen, in words and numbers."""

    buffers: dict[str, Tensor]
    report: dict[str, Any]


def fitted(
    rows: Rows,
    *,
    everything_NK: Tensor | None = None,
    positions_L: Tensor | None = None,
    classifier: str = "auto",
    sharpness: float | None = None,
    ridge: float | None = None,
) -> Fitted:
    """The best classifier of those that are asked for, fitted on all labelled images.

    Args:
        everything_NK: the components of all images, for a graph; None: there is none.
        positions_L: of the labelled images in it.
        classifier: auto (kernel, propagation or both), kernel, propagation or ridge.
        sharpness, ridge: of the kernel, or of ridge; None: chosen.
    """
    candidates: list[Candidate] = []
    if classifier == "ridge":
        strengths = LINEAR_RIDGE if ridge is None else (ridge,)
        candidates += sum_candidates(rows, sums_of(rows, None, None), None, None, strengths)
    if classifier in ("auto", "kernel"):
        sharp = SHARPNESS if sharpness is None else (sharpness,)
        candidates += kernel_candidates(rows, sharp, RIDGE if ridge is None else (ridge,))
    kernels = best(candidates) if candidates else None  # of which propagation is the other half, where both are used
    if classifier in ("auto", "propagation") and everything_NK is not None and positions_L is not None:
        spreads = Spreads(rows, everything_NK, positions_L)
        found = list(spreads.candidates())
        if kernels:
            candidates.append(both_of(kernels, best(found), rows.labels_L[:JUDGED], rows.weight_C))
        candidates += found
    chosen, expected = best(candidates), expected_top1(candidates)
    blank = torch.zeros(rows.copies_RLK.shape[2], rows.classes)
    buffers = {"linear": blank, "rows": torch.empty(0), "weight": torch.empty(0)}
    if chosen.name in ("kernel", "both"):
        similar_MM = kernel.kernel(rows.flat_MK, rows.flat_MK, chosen.numbers["sharpness"])
        weight_M = None if rows.weight_L is None else rows.weight_L.repeat(len(rows.copies_RLK))
        buffers["weight"] = kernel.solve(similar_MM, rows.targets_MC, chosen.numbers["ridge"], weight_M).float()
        buffers["rows"] = rows.flat_MK
        buffers["sharpness"] = torch.tensor(chosen.numbers["sharpness"])
    if chosen.weight_XC is not None:
        buffers["linear"] = chosen.weight_XC.float()
    if chosen.name in ("propagation", "both"):
        assert everything_NK is not None
        weight_KC = spreads.weights(chosen.numbers["reach"])
        scores = kernel.unit_rows(everything_NK).double() @ weight_KC
        hits = expected * len(rows.labels_L)
        gain = gain_for(scores, (hits + 0.5) / (len(rows.labels_L) + 1))
        buffers["linear"] = weight_KC.float()
        if chosen.name == "both":
            assert kernels is not None
            buffers["linear"], buffers["weight"] = buffers["linear"] * gain, buffers["weight"] * kernels.gain
        else:
            chosen = replace(chosen, gain=gain)
    buffers["gain"] = torch.tensor(chosen.gain)
    return Fitted(buffers, told(chosen, candidates, expected))


def basis(rows: Rows, landmarks: int, sharpness: float | None, ridge: float | None) -> Fitted:
    """What many labelled images are compared with: buffers rows and sharpness. The weights follow from sums.

    Args:
        rows: of some labelled images: the landmarks are taken from them, and a sharpness is chosen on them.
        landmarks: M; 0: none, for linear ridge.
        sharpness: None: it is chosen, with this ridge, or if that is None, with the best one.
    """
    buffers = {"rows": torch.empty(0)}
    if landmarks:
        image_M = torch.arange(min(landmarks, len(rows.labels_L)))
        copy_M = image_M % len(rows.copies_RLK)
        buffers["rows"] = kernel.unit_rows(rows.copies_RLK[copy_M, image_M])
        chosen = best_sharpness(rows, buffers["rows"], ridge) if sharpness is None else sharpness
        buffers["sharpness"] = torch.tensor(chosen)
    return Fitted(buffers, {})


def best_sharpness(rows: Rows, landmarks_MK: Tensor, ridge: float | None) -> float:
    """Of a kernel with the first landmarks, on all these rows: the more labels, the smoother is the best kernel."""
    tried_MK, strengths = landmarks_MK[:TRIED_LANDMARKS], RIDGE_OF_MANY if ridge is None else (ridge,)
    candidates: list[Candidate] = []
    for sharpness in SHARPNESS:
        products = sums_of(rows, tried_MK, sharpness)
        candidates += sum_candidates(rows, products, tried_MK, sharpness, strengths)
    return best(candidates).numbers["sharpness"]


def sums_of(rows: Rows, landmarks_MK: Tensor | None, sharpness: float | None) -> Products:
    """The sums over rows that are in memory; arguments as in `sum_candidates`."""
    size = rows.copies_RLK.shape[2] if landmarks_MK is None else len(landmarks_MK)
    products = Products(size, rows.classes)
    labels_M = rows.labels_L.repeat(len(rows.copies_RLK))
    for rows_BK, labels_B in zip(rows.copies_RLK.flatten(0, 1).split(CHUNK), labels_M.split(CHUNK), strict=True):
        weight_B = None if rows.weight_C is None else rows.weight_C[labels_B]
        x_BX = inputs(kernel.unit_rows(rows_BK), landmarks_MK, sharpness)
        products.add(x_BX, kernel.targets(labels_B, rows.classes), weight_B)
    return products


def fitted_to_many(rows: Rows, landmarks: int, sharpness: float | None, ridge: float | None) -> Fitted:
    """The best classifier for more rows than a kernel holds; arguments as in `basis` and `fitted_to_sums`."""
    made = basis(rows, landmarks, sharpness, ridge).buffers
    landmarks_MK = made["rows"] if landmarks else None
    products = sums_of(rows, landmarks_MK, float(made["sharpness"]) if landmarks else None)
    found = fitted_to_sums(rows, products, made, ridge)
    return Fitted(made | found.buffers, found.report)


def fitted_to_sums(rows: Rows, products: Products, made: Mapping[str, Tensor], ridge: float | None) -> Fitted:
    """The best strength for the sums over all labelled images.

    Args:
        rows: components of some of these images, for judging.
        made: the buffers that `basis` gave.
    """
    landmarks_MK = made["rows"] if made["rows"].numel() else None
    sharpness = float(made["sharpness"]) if landmarks_MK is not None else None
    strengths = (ridge,) if ridge is not None else LINEAR_RIDGE if landmarks_MK is None else RIDGE_OF_MANY
    candidates = list(sum_candidates(rows, products, landmarks_MK, sharpness, strengths))
    chosen = best(candidates)
    assert chosen.weight_XC is not None
    blank = torch.zeros(rows.copies_RLK.shape[2], rows.classes)
    buffers = {"weight": torch.empty(0), "linear": blank, "gain": torch.tensor(chosen.gain)}
    buffers["linear" if landmarks_MK is None else "weight"] = chosen.weight_XC.float()
    more = {} if landmarks_MK is None else {"landmarks": len(landmarks_MK)}
    return Fitted(buffers, told(chosen, candidates, expected_top1(candidates), **more))


def told(chosen: Candidate, candidates: Sequence[Candidate], expected: float, **more: Any) -> dict[str, Any]:
    """The report: expected_top1 in [0, 1], on how many images, the choice, and all candidates."""
    return {
        "expected_top1": expected,
        "labels_judged": len(chosen.right_L),
        "expected_loss": chosen.loss,
        "chosen": {"classifier": chosen.name, **chosen.numbers, **more},
        "candidates": [candidate.told() for candidate in candidates],
    }


class Spreads:
    """What the labels tell all images over the graph, near and far.

    Args:
        everything_NK: components of all images.
        positions_L: of the labelled images in it.
    """

    def __init__(self, rows: Rows, everything_NK: Tensor, positions_L: Tensor) -> None:
        self.rows, self.everything_NK, self.positions_L = rows, everything_NK, positions_L
        self.group_L = graph.groups(rows.labels_L, rows.classes)
        self.soft_NC: dict[float, Tensor] = {}  # by reach

    def candidates(self) -> Iterator[Candidate]:
        labels_L, group_L, classes = self.rows.labels_L, self.group_L, self.rows.classes
        graph_NN = graph.neighbour_graph(kernel.unit_rows(self.everything_NK), NEIGHBOURS)
        sources_NG = graph.sources(len(self.everything_NK), self.positions_L, group_L)
        for reach in REACH:
            spread_NG = graph.spread(graph_NN, sources_NG, reach)
            self.soft_NC[reach] = graph.propagated(spread_NG, labels_L, group_L, classes)
            scores = graph.left_out_scores(spread_NG[self.positions_L], labels_L, group_L, classes)[:JUDGED]
            yield judged("propagation", {"reach": reach}, scores, labels_L[:JUDGED], self.rows.weight_C)

    def weights(self, reach: float) -> Tensor:
        """(K, C), of the linear classifier that the classes of all images teach; after `candidates`."""
        return from_pseudo_labels(self.everything_NK, self.soft_NC[reach], self.positions_L, self.rows)


def from_pseudo_labels(z_NK: Tensor, soft_NC: Tensor, positions_L: Tensor, rows: Rows) -> Tensor:
    """Ridge regression on all images, each with the class that it got, weighted by how sure that is.

    Over all images, the classes get about the shares that they have among the labels: else a class whose images lie
    close together takes those of others. Few labels say little of the shares, hence the prior, that all are equal.
    Source: class mass normalisation, Zhu, Ghahramani and Lafferty 2003.
    """
    count_C = torch.bincount(rows.labels_L, minlength=rows.classes) + PRIOR
    frequency_C = count_C / count_C.sum()
    shares = _shares(soft_NC.clamp_min(0))
    shares = _shares(shares * frequency_C / shares.sum(0).clamp_min(1e-30))
    pseudo_N = shares.argmax(1)
    top = shares.topk(min(2, rows.classes), dim=1).values
    weight_N = (top[:, 0] - top[:, -1]).double()
    pseudo_N[positions_L], weight_N[positions_L] = rows.labels_L, TRUE_LABEL
    if rows.weight_C is not None:
        weight_N *= rows.weight_C[pseudo_N]
    products = Products(z_NK.shape[1], rows.classes)
    for z_BK, pseudo_B, weight_B in zip(z_NK.split(CHUNK), pseudo_N.split(CHUNK), weight_N.split(CHUNK), strict=True):
        products.add(kernel.unit_rows(z_BK).double(), kernel.targets(pseudo_B, rows.classes), weight_B)
    return linear.fit(products, PSEUDO_RIDGE)[0]


def _shares(scores_NC: Tensor) -> Tensor:
    return scores_NC / scores_NC.sum(1, keepdim=True).clamp_min(1e-30)
