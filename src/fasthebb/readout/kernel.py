"""Kernel ridge regression, and what it says of each image when that image is left out.

    k(a, b) = exp(sharpness (a.b / |a||b| - 1)),    (K + ridge I) alpha = Y,    scores = k(x, rows) alpha

Several rows may belong to one image (the image, its mirror image, a view). Left out together, the rows g of an image
get the scores Y_g - ((K + ridge I)^-1)_gg^-1 alpha_g, which is exact and free: one factorisation serves all images.
Source: the block form of the leave-one-out formula, as in Rifkin and Lippert 2007.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def unit_rows(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=1)


def kernel(a_AK: Tensor, b_BK: Tensor, sharpness: float) -> Tensor:
    """(A, B); rows of length 1."""
    return ((a_AK @ b_BK.T - 1) * sharpness).exp()


def targets(labels_N: Tensor, classes: int) -> Tensor:
    """One-hot less 1 / C, float64 (N, C)."""
    return F.one_hot(labels_N, classes).double() - 1 / classes


def fit(kernel_MM: Tensor, targets_MC: Tensor, ridge: float, weight_M: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """alpha (M, C) and (K + ridge I)^-1 (M, M).

    Args:
        weight_M: of each row's error; the ridge of a row is divided by it. None: 1.
    """
    regular = kernel_MM.double()
    regular.diagonal().add_(ridge if weight_M is None else ridge / weight_M)
    inverse_MM = torch.cholesky_inverse(torch.linalg.cholesky(regular))
    return inverse_MM @ targets_MC, inverse_MM


def solve(kernel_MM: Tensor, targets_MC: Tensor, ridge: float, weight_M: Tensor | None = None) -> Tensor:
    """alpha alone, at a third of the cost."""
    regular = kernel_MM.double()
    regular.diagonal().add_(ridge if weight_M is None else ridge / weight_M)
    return torch.cholesky_solve(targets_MC, torch.linalg.cholesky(regular))


def left_out_scores(alpha_MC: Tensor, inverse_MM: Tensor, targets_MC: Tensor, copies: int) -> Tensor:
    """Scores (N, copies, C) of each image's rows by what all other images' rows teach.

    Args:
        copies: rows of an image; M = copies x N, and row c of image n is c N + n.
    """
    images = len(alpha_MC) // copies
    rows_NR = torch.arange(images)[:, None] + images * torch.arange(copies)
    blocks_NRR = inverse_MM[rows_NR[:, :, None], rows_NR[:, None, :]]
    scores: Tensor = targets_MC[rows_NR] - torch.linalg.solve(blocks_NRR, alpha_MC[rows_NR])
    return scores
