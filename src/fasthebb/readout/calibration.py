"""Calibrated scores: the factor on them with which their softmax fits the labels best, and how well it does."""

import torch
from torch import Tensor
from torch.nn import functional as F

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


def calibration_error(confidence_N: Tensor, right_N: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean distance of confidence and accuracy, by bins of the confidence."""
    place = (confidence_N * bins).long().clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, confidence_N.double() - right_N.double())
    return float(gaps.abs().sum() / max(len(confidence_N), 1))
