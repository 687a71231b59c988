"""Calibrated scores: the factor on them with which their softmax fits the labels best, and how well it does."""

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 15
GAINS = torch.logspace(-1, 4, 251, dtype=torch.float64)


def best_gain(scores_NC: Tensor, labels_N: Tensor) -> float:
    """The factor that makes the mean cross-entropy of the scores smallest, within 5 %."""
    scores = scores_NC.double()
    losses = torch.stack([F.cross_entropy(scores * gain, labels_N) for gain in GAINS])
    return float(GAINS[losses.argmin()])


def gain_for(scores_NC: Tensor, confidence: float) -> float:
    """The factor with which the mean of the largest softmax is `confidence`, or nearest to it."""
    scores = scores_NC.double()
    sure = torch.stack([(scores * gain).softmax(1).amax(1).mean() for gain in GAINS])
    return float(GAINS[(sure - confidence).abs().argmin()])


def calibration_gaps(confidence_N: Tensor, right_N: Tensor) -> Tensor:
    """Sums of confidence minus hits (BINS,), by bins of the confidence: they add over batches and processes.

    Args:
        confidence_N: the largest softmax of each image, in [0, 1].
        right_N: whether the image is classified right.
    """
    place_N = (confidence_N * BINS).long().clamp(0, BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64)
    return gaps.index_add_(0, place_N.cpu(), confidence_N.cpu().double() - right_N.cpu().double())


def calibration_error(gaps: Tensor, count: int) -> float:
    """Expected calibration error in [0, 1]: the mean distance of confidence and accuracy, by bins of the confidence.

        sum over bins b of n_b / N |accuracy_b - confidence_b|        (Naeini et al. 2015; Guo et al. 2017)

    Args:
        gaps: of all images, see `calibration_gaps`.
        count: the number of images.
    """
    return float(gaps.abs().sum()) / max(count, 1)
