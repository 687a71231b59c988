"""Sums over rows of features, which add over batches and processes: their number, their sum, their products."""

from typing import Any

import torch
from torch import Tensor

TOGETHER = 8  # products that are added up in float32 before they go into the float64 sum


class ProductSum:
    """The sum of x^T y over batches, in float64 on the CPU.

    A product in float32 is added to another one at no cost, but to a float64 sum by a pass over all of it, which takes
    longer than the product itself. So a few are added up first.

    Args:
        size, other: columns of x and of y.
    """

    def __init__(self, size: int, other: int) -> None:
        self._sum = torch.zeros(size, other, dtype=torch.float64)
        self._recent = torch.zeros(size, other)
        self._added = torch.zeros((), dtype=torch.int64)  # products in `_recent`

    def add(self, x_BD: Tensor, y_BE: Tensor) -> None:
        self._recent = self._recent.to(x_BD)  # the same tensor, but for the first time on another device
        self._recent.addmm_(x_BD.T, y_BE)
        self._added += 1
        if int(self._added) >= TOGETHER:
            self._sum += self._recent.cpu()
            self._recent.zero_()
            self._added.zero_()

    @property
    def total(self) -> Tensor:
        return self._sum + self._recent.cpu()

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self._sum, "recent": self._recent.cpu(), "added": self._added}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sum, self._recent, self._added = state["sum"], state["recent"], state["added"]


class Moments:
    """Rows x (D,): their number n, the sum of x, and that of x x^T.

    Args:
        size: D.
    """

    def __init__(self, size: int) -> None:
        self.count = torch.zeros((), dtype=torch.float64)
        self.sum_D = torch.zeros(size, dtype=torch.float64)
        self._products = ProductSum(size, size)

    def add(self, rows_BD: Tensor) -> None:
        self.count += len(rows_BD)
        self.sum_D += rows_BD.sum(0, dtype=torch.float64).cpu()
        self._products.add(rows_BD, rows_BD)

    def mean(self) -> Tensor:
        return self.sum_D / self.count

    def mean_product(self) -> Tensor:
        """The mean of x x^T (D, D)."""
        return self._products.total / self.count

    def covariance(self) -> Tensor:
        mean_D = self.mean()
        return self.mean_product() - torch.outer(mean_D, mean_D)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "rows": self.sum_D} | self._products.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.sum_D = state["count"], state["rows"]
        self._products.load_state_dict(state)
