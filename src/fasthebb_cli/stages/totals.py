"""Sums over the samples of an epoch, and the means that they become at its end."""

import math
from typing import Any

import torch
from torch import Tensor

from fasthebb_cli.compute import processes
from fasthebb_cli.errors import RunError


class Totals:
    """Running sums over samples. They are divided once, at the end, so that a short batch has its right weight.

    Each process adds up its own samples; `means` is of those of all processes.
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
        sums = {name: processes.summed(value.clone()) for name, value in self.sums.items()}
        samples = float(sums.pop("samples"))
        self.sums = {}
        return {name: float(value) / samples for name, value in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": processes.summands(self.sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = processes.own_summands(state["sums"])
        self.sums = {name: value.to(self.device) for name, value in own.items()}


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
