"""Sums over the samples of an epoch, and the means that they become at its end."""

import math
from typing import Any

import torch
from torch import Tensor

from fasthebb_cli.compute import processes
from fasthebb_cli.errors import RunError


class Totals:
    """Running sums over samples. They are divided once, at the end, so that a short batch has its right weight.

    Each process adds up its own samples; `means` and `state_dict` give the sums over all processes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor | float) -> None:
        for name, value in values.items():
            value = torch.as_tensor(value, dtype=torch.float64 if self.device.type != "mps" else torch.float32)
            self.sums[name] = self.sums.get(name, torch.zeros_like(value, device=self.device)) + value.to(self.device)

    def means(self) -> dict[str, float]:
        """Every sum divided by the sum called `samples`. The totals start again at 0."""
        sums = self.state_dict()
        samples = float(sums.pop("samples"))
        self.sums = {}
        return {name: float(value) / samples for name, value in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return {name: processes.summed(value.clone()) for name, value in self.sums.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The first process starts from the sums, the others from 0."""
        kept = 1 if processes.is_first() else 0
        self.sums = {name: value.to(self.device) * kept for name, value in state.items()}


def check_scores(means: dict[str, float]) -> dict[str, float]:
    """The same means.

    Raises:
        RunError: the loss is not finite, so that the accuracy means nothing.
    """
    if not math.isfinite(means["loss"]):
        raise RunError("the network's scores are not finite, so they can't be measured; its training has diverged")
    return means


def check_loss(loss: float, epoch: int, key: str) -> None:
    """Raises:
    RunError: the mean loss of an epoch is not finite; names the learning rate to lower.
    """
    if not math.isfinite(loss):
        raise RunError(f"the loss is {loss} in epoch {epoch + 1}; lower {key}")
