"""From sums over images to a linear map z = (x - mean) A of features: standardised, projected, whitened by views."""

import torch
from torch import Tensor

ITERATIONS, SPARE = 6, 16  # of the subspace iteration: rounds, and directions beyond those that are asked for
# Features up to which all components are computed, in float64 and in float32: at 4,096 that takes as long as 1,000
# components by subspace iteration
SMALL, EXACT = 1024, 4096


def standard_scale(variance_D: Tensor, floor: float) -> Tensor:
    """1 / deviation, which is at least `floor` times the mean deviation: a rarely active unit is mostly noise."""
    std_D = variance_D.clamp_min(0).sqrt()
    least = max(floor * float(std_D.mean()), torch.finfo(torch.float32).tiny)
    return std_D.clamp_min(least).reciprocal()


def leading_components(covariance_DD: Tensor, count: int) -> Tensor:
    """The `count` orthonormal directions (D, count) of the largest variance, the largest first.

    More than EXACT features: by subspace iteration from fixed random directions, in float32. Its span is nearly the
    exact one.
    """
    size = len(covariance_DD)
    count = min(count, size)
    matrix = covariance_DD if size <= SMALL else covariance_DD.float()
    if size <= EXACT:
        exact: Tensor = torch.linalg.eigh(matrix)[1].flip(1)[:, :count].double()
        return exact
    draws = torch.Generator().manual_seed(0)
    basis = torch.randn(size, min(count + SPARE, size), generator=draws)
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(matrix @ basis)[0]
    vectors = torch.linalg.eigh((basis.T @ (matrix @ basis)).double())[1].flip(1)[:, :count]
    leading: Tensor = basis.double() @ vectors
    return leading


def view_whitening(differences_KK: Tensor, shrinkage: float) -> Tensor:
    """Q = (S + shrinkage x tr(S) / K x I)^(-1/2), which shrinks the directions in which views of one image differ.

    It is the fixed point of anti-Hebbian decorrelation of the differences.

    Args:
        differences_KK: S, the mean of (z - z') (z - z')^T / 2 over images and their views.
    """
    values, vectors = torch.linalg.eigh(differences_KK)
    floor = shrinkage * float(values.mean())
    whitening: Tensor = (vectors * (values.clamp_min(0) + floor).rsqrt()) @ vectors.T
    return whitening
