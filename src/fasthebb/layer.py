"""The layers that learn: which they are, their sums since the last step, their statistics since the last report."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fasthebb import engine, geometry
from fasthebb.patterns import matches
from fasthebb.responses import UNITS, Moments
from fasthebb.rules import Terms
from fasthebb.settings import RuleSetting

WATCH = 8  # statistics are taken from one step in WATCH


@dataclass
class LayerStatistics:
    """What a layer did since the last call of `HebbianLearner.statistics`; Hebbian learning has no loss to watch.

    Args:
        update: mean of |lr dW| / |W| (Frobenius norms) over every WATCH-th step; dW before the optimizer changes it.
        dead: number of units that never responded in these steps; under a competitive rule, that never won a patch.
        units: number of units.
        norm_minimum, norm_maximum: smallest and largest length of a weight vector now.
        steps: number of steps that the layer took.
    """

    update: float
    dead: int
    units: int
    norm_minimum: float
    norm_maximum: float
    steps: int


class LearningLayer:
    """A layer, its sums since the last step and its statistics since the last report.

    Args:
        name: the module's name in the network.
        module: a Linear or Conv2d.
        options: keyword arguments of the rule for this layer.
        is_first: it is the network's first layer, in which a teacher assigns no unit.

    Attributes:
        sums: of this step, or None.
        sent: functions that wait for sums over processes and return them.
        spare: the memory of the last step's numerator, or None; the next step uses it again.
        moments: running moments of the responses, or None.
        learns: false while another layer learns alone.
        alive: (units,), whether a unit was alive in a watched step.
        update_total: sum of |lr dW| / |W| over watched steps.
        steps: number of steps since the last report.
    """

    def __init__(
        self, name: str, module: geometry.Layer, options: Mapping[str, Any], *, is_first: bool = False
    ) -> None:
        self.name, self.module, self.options, self.is_first = name, module, options, is_first
        self.sums: engine.Sums | None = None
        self.sent: list[Callable[[], engine.Sums]] = []
        self.spare: Tensor | None = None
        self.moments: Moments | None = None
        self.learns = True
        self.alive = torch.zeros(len(module.weight), dtype=torch.bool, device=module.weight.device)
        self.update_total = torch.zeros((), dtype=module.weight.dtype, device=module.weight.device)
        self.steps = 0

    @property
    def units(self) -> int:
        """Number of units in a group."""
        return len(self.module.weight) // geometry.groups_of(self.module)

    @property
    def is_watched(self) -> bool:
        """Whether this step counts for the statistics. They read all weights and responses, which costs time."""
        return self.steps % WATCH == 0

    def add(self, more: engine.Sums) -> None:
        """Adds sums over more patches of the same step."""
        if self.sums is None:
            self.sums = more
        else:
            self.sums.add_(more)

    def update_moments(self, batch: Moments, momentum: float) -> None:
        """Moves the running moments towards those of a batch; the first batch sets them."""
        if self.moments is None:
            self.moments = batch
        else:
            self.moments.move_to_(batch, momentum)

    def take_gradient(self) -> Tensor | None:
        """-dW from the sums, which it clears; None if there are none. Waits for the sums of other processes."""
        for receive in self.sent:
            self.add(receive())
        self.sent = []
        if self.sums is None:
            return None
        gradient = self.sums.gradient_(self.module.weight)
        self.spare = gradient if isinstance(self.module, nn.Linear) else None
        self.sums = None
        return gradient

    def statistics(self) -> LayerStatistics:
        norm_K = self.module.weight.detach().flatten(1).norm(dim=1)
        return LayerStatistics(
            update=float(self.update_total) / max(-(-self.steps // WATCH), 1),
            dead=int((~self.alive).sum()),
            units=len(norm_K),
            norm_minimum=float(norm_K.min()),
            norm_maximum=float(norm_K.max()),
            steps=self.steps,
        )

    def reset_statistics(self) -> None:
        self.alive.zero_()
        self.update_total.zero_()
        self.steps = 0

    def state(self) -> dict[str, Any]:
        """Statistics and running moments; the weights are in the network's own state_dict."""
        moments = None if self.moments is None else vars(self.moments)
        return {"alive": self.alive, "update_total": self.update_total, "steps": self.steps, "moments": moments}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.alive.copy_(state["alive"])
        self.update_total.copy_(state["update_total"])
        self.steps = state["steps"]
        device, moments = self.module.weight.device, state["moments"]
        self.moments = moments and Moments(**{name: value.to(device, copy=True) for name, value in moments.items()})


def choose_layers(
    network: nn.Module, setting: RuleSetting, *, include: Iterable[str], exclude: Iterable[str]
) -> tuple[list[LearningLayer], dict[str, str]]:
    """The Conv2d and Linear layers that match a pattern of `include` and none of `exclude`.

    Returns:
        The layers that learn, and `untrainable`: layer name -> reason why the rule cannot train it.

    Raises:
        ValueError: an unknown option of the rule, or no layer is left.
    """
    include, exclude = list(include), list(exclude)
    modules = dict(network.named_modules())
    trainable = {name: module for name, module in modules.items() if isinstance(module, nn.Linear | nn.Conv2d)}
    first = next(iter(trainable), None)
    layers: list[LearningLayer] = []
    untrainable: dict[str, str] = {}
    for name, module in modules.items():
        if not matches(name, include) or matches(name, exclude):
            continue
        options = setting.options_of(name)
        reason = _why_untrainable(module, competitive=setting.try_rule(options).competitive)
        if reason is not None:
            untrainable[name] = reason
        elif name in trainable:
            layers.append(LearningLayer(name, trainable[name], options, is_first=name == first))
    if not layers:
        found = ", ".join(trainable)
        raise ValueError(f"no Conv2d or Linear layer is left to learn: see include and exclude; there are: {found}")
    return layers, untrainable


def _why_untrainable(module: nn.Module, *, competitive: bool) -> str | None:
    """Why the rule cannot train the weights of a module; None if it can, or if the module has no weights of its own."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        if competitive and len(module.weight) == geometry.groups_of(module):
            return "one unit a group, and the rule needs several that compete"
        return None
    own = [value for value in module.parameters(recurse=False) if value.dim() > 1]
    return f"a {type(module).__name__}, and rules are for Conv2d and Linear" if own else None


def alive(terms: Terms) -> Tensor:
    """Which units are alive in a batch, (units,).

    A unit is alive if its gate is not 0 for some patch. Under a competitive rule it must win a patch; a unit that ties
    with all others wins only if every gate is 1.
    """
    gate = terms.gate
    if terms.competitive:
        low, high = torch.aminmax(gate, dim=UNITS, keepdim=True)
        lost_by = torch.where(high > low, high - gate, 1 - gate)
        return (lost_by.amin(0) == 0).flatten()
    return ((gate.amax(0) > 0) | (gate.amin(0) < 0)).flatten()
