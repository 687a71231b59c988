"""What the learner keeps of each layer: the sums of the step to come, and what the layer has done since last asked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fasthebb import engine, geometry
from fasthebb.responses import UNITS, Moments
from fasthebb.rules import Terms

WATCH = 8  # statistics are taken from the first of so many steps


@dataclass
class LayerStatistics:
    """What a layer did since the last call of `HebbianLearner.statistics`; there is no loss to watch.

    Args:
        update: mean of |lr dW| / |W| (Frobenius norms), over every WATCH-th step, dW before the optimizer.
        dead: units that in these steps never responded, or under a competitive rule never won a patch.
        units: number of units.
        norm_minimum, norm_maximum: range of the weight vectors' lengths now.
        steps: that it took.
    """

    update: float
    dead: int
    units: int
    norm_minimum: float
    norm_maximum: float
    steps: int


class LearningLayer:
    """One layer's sums since the last step and its statistics since the last report."""

    def __init__(self, name: str, module: geometry.Layer, options: Mapping[str, Any]) -> None:
        self.name, self.module, self.options = name, module, options
        self.sums: engine.Sums | None = None
        self.sent: list[Callable[[], engine.Sums]] = []  # and not yet received, from all processes
        self.spare: Tensor | None = None  # memory of the last step's numerator, for the next
        self.moments: Moments | None = None
        self.learns = True
        self.alive = torch.zeros(len(module.weight), dtype=torch.bool, device=module.weight.device)
        self.update_total = torch.zeros((), dtype=module.weight.dtype, device=module.weight.device)
        self.steps = 0

    def reset_statistics(self) -> None:
        self.alive.zero_()
        self.update_total.zero_()
        self.steps = 0

    def add(self, more: engine.Sums) -> None:
        """More patches of the same step."""
        if self.sums is None:
            self.sums = more
        else:
            self.sums.add_(more)

    @property
    def is_watched(self) -> bool:
        """Statistics read all weights and responses once more, so they are taken from some of the steps."""
        return self.steps % WATCH == 0

    def statistics(self) -> LayerStatistics:
        norm = self.module.weight.detach().flatten(1).norm(dim=1)
        return LayerStatistics(
            update=float(self.update_total) / max(-(-self.steps // WATCH), 1),
            dead=int((~self.alive).sum()),
            units=len(norm),
            norm_minimum=float(norm.min()),
            norm_maximum=float(norm.max()),
            steps=self.steps,
        )


def alive(terms: Terms) -> Tensor:
    """Units that learnt from at least one patch; where they compete, that won one (all tie: only if all take it)."""
    gate = terms.gate
    if terms.competitive:
        low, high = torch.aminmax(gate, dim=UNITS, keepdim=True)
        lost_by = torch.where(high > low, high - gate, 1 - gate)
        return (lost_by.amin(0) == 0).flatten()
    return ((gate.amax(0) > 0) | (gate.amin(0) < 0)).flatten()
