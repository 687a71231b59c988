"""Linear ridge regression, and the scores that each image gets when it is left out. M rows, K components, C classes.

    (X^T X + ridge tr(X^T X) / K I) W = X^T Y

The rows g of an image that is left out get Y_g - (I - H_gg)^-1 (Y_g - X_g W), where H_gg = X_g (X^T X + ...)^-1 X_g^T.
"""

import torch
from torch import Tensor

CHUNK = 16_384  # rows that are in float64 at once


def products(x_MK: Tensor, targets_MC: Tensor) -> tuple[Tensor, Tensor]:
    """X^T X (K, K) and X^T Y (K, C), in float64."""
    size, classes = x_MK.shape[1], targets_MC.shape[1]
    inner_KK, cross_KC = (torch.zeros(size, width, dtype=torch.float64) for width in (size, classes))
    for x_BK, y_BC in zip(x_MK.split(CHUNK), targets_MC.split(CHUNK), strict=True):
        inner_KK += x_BK.double().T @ x_BK.double()
        cross_KC += x_BK.double().T @ y_BC
    return inner_KK, cross_KC


def fit(inner_KK: Tensor, cross_KC: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """W (K, C), and the inverse (K, K)."""
    regular = inner_KK.clone()
    regular.diagonal().add_(ridge * float(inner_KK.diagonal().mean()))
    inverse_KK = torch.cholesky_inverse(torch.linalg.cholesky(regular))
    return inverse_KK @ cross_KC, inverse_KK


def left_out_scores(x_RLK: Tensor, targets_LC: Tensor, weight_KC: Tensor, inverse_KK: Tensor) -> Tensor:
    """Scores (L, R, C) of the R rows of each of L images, which share a target."""
    x_LRK = x_RLK.double().transpose(0, 1)
    hat_LRR = x_LRK @ inverse_KK @ x_LRK.transpose(1, 2)
    targets_LRC = targets_LC[:, None].expand(-1, len(x_RLK), -1)
    residual_LRC = targets_LRC - x_LRK @ weight_KC
    rest_LRR = torch.eye(len(x_RLK)).double() - hat_LRR
    scores: Tensor = targets_LRC - torch.linalg.solve(rest_LRR, residual_LRC)
    return scores
