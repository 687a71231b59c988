"""Sums over rows of features, which add over batches and processes: their number, their sum, their products."""

from typing import Any

import torch
from torch import Tensor


class Moments:
    """Rows x (D,): their number n, the sum of x, and that of x x^T, in float64.

    Args:
        size: D.
    """

    def __init__(self, size: int) -> None:
        self.count = torch.zeros((), dtype=torch.float64)
        self.sum_D = torch.zeros(size, dtype=torch.float64)
        self.products_DD = torch.zeros(size, size, dtype=torch.float64)

    def add(self, rows_BD: Tensor) -> None:
        self.count += len(rows_BD)
        self.sum_D += rows_BD.sum(0, dtype=torch.float64).cpu()
        self.products_DD += (rows_BD.T @ rows_BD).cpu()

    def mean(self) -> Tensor:
        return self.sum_D / self.count

    def covariance(self) -> Tensor:
        mean_D = self.mean()
        return self.products_DD / self.count - torch.outer(mean_D, mean_D)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.count, self.sum_D, self.products_DD

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "sum": self.sum_D, "products": self.products_DD}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.sum_D, self.products_DD = state["count"], state["sum"], state["products"]
