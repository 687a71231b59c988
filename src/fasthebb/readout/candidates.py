"""Classifiers on the labelled images' components, each judged by what an image gets when its own label is unknown.

Every candidate is scored by leaving out one labelled image after the other, in closed form: no validation label is
read. The best has the highest accuracy; among equals, the lowest cross-entropy of calibrated scores.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fasthebb.readout import kernel
from fasthebb.readout import ridge as linear
from fasthebb.readout.calibration import best_gain, gain_for
from fasthebb.readout.ridge import Products

SHARPNESS = (1.0, 3.0, 6.0)
RIDGE = (0.03, 0.3, 3.0)
RIDGE_OF_MANY = RIDGE[:2]  # more rows than a kernel holds
LINEAR_RIDGE = (0.001, 0.01, 0.1, 1.0)
JUDGED = 1000  # most labelled images that candidates are judged on
FOLDS = 5  # of the labelled images, to tell what the best of several candidates is worth


@dataclass(frozen=True)
class Rows:
    """The labelled images' components.

    Args:
        copies_RLK: R rows of each of L images: first the image, then the mirror image if `scored` is 2, then views.
        scored: how many of them count when an image is scored.
        labels_L: classes.
        weight_C: what an image of each class counts; None: the same for all.
    """

    copies_RLK: Tensor
    labels_L: Tensor
    scored: int
    classes: int
    weight_C: Tensor | None = None

    @property
    def weight_L(self) -> Tensor | None:
        """What each image counts."""
        return None if self.weight_C is None else self.weight_C[self.labels_L]

    @property
    def flat_MK(self) -> Tensor:
        return kernel.unit_rows(self.copies_RLK.flatten(0, 1))

    @property
    def targets_MC(self) -> Tensor:
        return kernel.targets(self.labels_L.repeat(len(self.copies_RLK)), self.classes)

    @property
    def judged(self) -> "Rows":
        return replace(self, copies_RLK=self.copies_RLK[:, :JUDGED], labels_L=self.labels_L[:JUDGED])


@dataclass(frozen=True)
class Candidate:
    """A classifier with its numbers, and what leaving one out says of it.

    Args:
        top1: accuracy in [0, 1] of the left-out scores; loss: their cross-entropy with the best gain. In both an image
            counts weight_L.
        right_L: which of the judged images got their class.
        scores_LC: the left-out scores, as they came.
        weight_XC: what the classifier weighs its inputs by; None: it is found later, for the best one alone.
    """

    name: str
    numbers: dict[str, float]
    top1: float
    loss: float
    gain: float
    right_L: Tensor
    weight_L: Tensor
    scores_LC: Tensor
    weight_XC: Tensor | None = None

    def told(self) -> dict[str, Any]:
        return {"name": self.name, "numbers": self.numbers, "top1": self.top1, "loss": self.loss, "gain": self.gain}


def balanced(labels_N: Tensor, classes: int) -> Tensor:
    """What an image of each class counts, float64 (C,): all classes that occur count the same, and an image counts 1 in
    the mean.
    """
    count_C = torch.bincount(labels_N, minlength=classes).double()
    return len(labels_N) / (count_C.clamp_min(1) * (count_C > 0).sum())


def judged(
    name: str, numbers: dict[str, float], scores_LC: Tensor, labels_L: Tensor, weight_C: Tensor | None = None
) -> Candidate:
    right_L = scores_LC.argmax(1) == labels_L
    # where all are right, the likeliest gain would be endless; confidence is no higher than so few labels can show
    most = (float(right_L.sum()) + 0.5) / (len(labels_L) + 1)
    gain = min(best_gain(scores_LC, labels_L), gain_for(scores_LC, most))
    loss = float(F.cross_entropy(scores_LC.double() * gain, labels_L, weight_C))
    weight_L = torch.ones(len(labels_L)).double() if weight_C is None else weight_C[labels_L]
    top1 = float((right_L * weight_L).sum() / weight_L.sum())
    return Candidate(name, numbers, top1, loss, gain, right_L, weight_L, scores_LC.double())


def kernel_candidates(
    rows: Rows, sharpness: Sequence[float] = SHARPNESS, ridge: Sequence[float] = RIDGE
) -> Iterator[Candidate]:
    rows = rows.judged
    flat_MK, targets_MC = rows.flat_MK, rows.targets_MC
    copies, weight_L = len(rows.copies_RLK), rows.weight_L
    weight_M = None if weight_L is None else weight_L.repeat(copies)
    for sharp in sharpness:
        similar_MM = kernel.kernel(flat_MK, flat_MK, sharp)
        for strength in ridge:
            alpha_MC, inverse_MM = kernel.fit(similar_MM, targets_MC, strength, weight_M)
            scores = kernel.left_out_scores(alpha_MC, inverse_MM, targets_MC, copies)[:, : rows.scored].mean(1)
            yield judged("kernel", {"sharpness": sharp, "ridge": strength}, scores, rows.labels_L, rows.weight_C)


def sum_candidates(
    rows: Rows, products: Products, landmarks_MK: Tensor | None, sharpness: float | None, strengths: Sequence[float]
) -> Iterator[Candidate]:
    """Those whose training rows are added up: a kernel with landmarks, or linear ridge without.

    Args:
        rows: of images that are in the sums, for judging.
    """
    rows = rows.judged
    x_RLX = inputs(rows.flat_MK, landmarks_MK, sharpness).unflatten(0, (len(rows.copies_RLK), -1))
    targets_LC = kernel.targets(rows.labels_L, rows.classes)
    metric = landmark_metric(landmarks_MK, sharpness)
    name = "ridge" if landmarks_MK is None else "kernel"
    numbers = {} if sharpness is None else {"sharpness": sharpness}
    for strength in strengths:
        weight, inverse = linear.fit(products, strength, metric)
        scores = linear.left_out_scores(x_RLX, targets_LC, weight, inverse, rows.weight_L)[:, : rows.scored].mean(1)
        found = judged(name, numbers | {"ridge": strength}, scores, rows.labels_L, rows.weight_C)
        yield replace(found, weight_XC=weight)


def both_of(kernels: Candidate, spread: Candidate, labels_L: Tensor, weight_C: Tensor | None = None) -> Candidate:
    """The product of their calibrated probabilities: the kernel knows the labels best, the graph all images."""
    scores_LC = kernels.gain * kernels.scores_LC + spread.gain * spread.scores_LC
    return judged("both", kernels.numbers | spread.numbers, scores_LC, labels_L, weight_C)


def best(candidates: Sequence[Candidate]) -> Candidate:
    return max(candidates, key=lambda candidate: (candidate.top1, -candidate.loss))


def expected_top1(candidates: Sequence[Candidate]) -> float:
    """What the best candidate is worth on new images.

    Its own left-out accuracy would say too much, as it is the highest of several. So each fold of the images is scored
    by the candidate that is best on the other folds.
    """
    right_AL = torch.stack([candidate.right_L.double() for candidate in candidates])
    fold_L = torch.arange(right_AL.shape[1]) % FOLDS
    hits = 0.0
    for fold in fold_L.unique():
        here = fold_L == fold
        elsewhere_A = (right_AL * candidates[0].weight_L)[:, ~here].sum(1)
        loss_A = torch.tensor([candidate.loss for candidate in candidates], dtype=torch.float64)
        tied_A = elsewhere_A == elsewhere_A.max()
        chosen = int(torch.where(tied_A, loss_A, torch.inf).argmin())
        hits += float(right_AL[chosen, here].sum())
    return hits / right_AL.shape[1]


def inputs(unit_BK: Tensor, landmarks_MK: Tensor | None, sharpness: float | None) -> Tensor:
    """What a classifier weighs: the rows themselves, or their kernel with the landmarks."""
    if landmarks_MK is None or sharpness is None:
        return unit_BK
    return kernel.kernel(unit_BK, landmarks_MK, sharpness)


def landmark_metric(landmarks_MK: Tensor | None, sharpness: float | None) -> Tensor | None:
    if landmarks_MK is None or sharpness is None:
        return None
    return kernel.kernel(landmarks_MK, landmarks_MK, sharpness).double()
