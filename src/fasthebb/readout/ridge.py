"""Ridge regression from sums over rows, and the scores that each image gets when it is left out.

    (X^T X + strength R) W = X^T Y

R is tr(X^T X) / K I for linear ridge. For a kernel with M landmark rows (Nystroem), X is the kernel between rows and
landmarks, and R is the kernel among the landmarks: then W weighs the landmarks as alpha does in `kernel`.

The rows g of an image that is left out get Y_g - (I - H_gg)^-1 (Y_g - X_g W), where H_gg = X_g (X^T X + ...)^-1 X_g^T.
N rows, K columns of X, C classes.
"""

from typing import Any

import torch
from torch import Tensor

from fasthebb.readout.moments import ProductSum

JITTER = 1e-7  # relative to the mean diagonal: a kernel among many landmarks has no full rank in rounding


class Products:
    """X^T X (K, K) and X^T Y (K, C). They add over batches and processes.

    Args:
        size: K.
        classes: C.
    """

    def __init__(self, size: int, classes: int) -> None:
        self._inner, self._cross = ProductSum(size, size), ProductSum(size, classes)

    def add(self, x_BK: Tensor, targets_BC: Tensor, weight_B: Tensor | None = None) -> None:
        """Rows; weight_B: what each counts; None: 1."""
        if weight_B is not None:
            root_B1 = weight_B.to(x_BK).sqrt()[:, None]
            x_BK, targets_BC = x_BK * root_B1, targets_BC.to(x_BK) * root_B1
        self._inner.add(x_BK, x_BK)
        self._cross.add(x_BK, targets_BC.to(x_BK))

    @property
    def inner_KK(self) -> Tensor:
        return self._inner.total

    @property
    def cross_KC(self) -> Tensor:
        return self._cross.total

    def state_dict(self) -> dict[str, Any]:
        parts = {"inner": self._inner, "cross": self._cross}
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in (("inner", self._inner), ("cross", self._cross)):
            part.load_state_dict({key: state[f"{name}.{key}"] for key in ("sum", "recent", "added")})


def fit(products: Products, strength: float, metric_KK: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """W (K, C), and the inverse (K, K).

    Args:
        metric_KK: R; None: that of linear ridge.
    """
    regular = products.inner_KK
    mean = float(regular.diagonal().mean())
    if metric_KK is None:
        regular.diagonal().add_(strength * mean)
    else:
        regular.add_(metric_KK, alpha=strength).diagonal().add_(JITTER * mean)
    inverse_KK = torch.cholesky_inverse(_cholesky(regular, mean))
    return inverse_KK @ products.cross_KC, inverse_KK


def _cholesky(regular_KK: Tensor, mean: float) -> Tensor:
    """Its factor. Where rounding has made a direction negative, the least power of ten on the diagonal mends it."""
    added = JITTER
    while True:
        factor_KK: Tensor
        factor_KK, failed = torch.linalg.cholesky_ex(regular_KK, check_errors=added >= 1)
        if not int(failed):
            return factor_KK
        regular_KK.diagonal().add_(9 * added * mean)
        added *= 10


def left_out_scores(
    x_RLK: Tensor, targets_LC: Tensor, weight_KC: Tensor, inverse_KK: Tensor, weight_L: Tensor | None = None
) -> Tensor:
    """Scores (L, R, C) of the R rows of each of L images, which share a target.

    Args:
        weight_L: what an image counts in the sums; None: 1.
    """
    x_LRK = x_RLK.double().transpose(0, 1)
    hat_LRR = x_LRK @ inverse_KK @ x_LRK.transpose(1, 2)
    if weight_L is not None:
        hat_LRR = hat_LRR * weight_L[:, None, None]
    targets_LRC = targets_LC[:, None].expand(-1, len(x_RLK), -1)
    residual_LRC = targets_LRC - x_LRK @ weight_KC
    rest_LRR = torch.eye(len(x_RLK)).double() - hat_LRR
    scores: Tensor = targets_LRC - torch.linalg.solve(rest_LRR, residual_LRC)
    return scores
