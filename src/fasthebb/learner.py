"""Trains the Conv2d and Linear layers of any network by a Hebbian rule, while the network runs forward.

    learner = HebbianLearner(network, "hpca", lr=0.1, exclude=["classifier*"])
    for images in loader:
        learner.learn(images)
    learner.finish()

`learn` is two halves: gradients.py turns images into -dW of each layer, and a torch optimizer applies that.
They can be called one by one: `learner.observe(images)`, as often as needed, and then `learner.step()`.
Knows no data, schedules or files.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fasthebb import geometry, processes
from fasthebb.gradients import Gradients
from fasthebb.layer import LayerStatistics, LearningLayer, choose_layers
from fasthebb.patterns import last_match
from fasthebb.plain_sgd import Optimizer
from fasthebb.replay import Replay
from fasthebb.settings import Execution, RuleSetting, StepSetting, setting_of
from fasthebb.teacher import Teacher

PLAIN_STEP = StepSetting()
PLAIN_EXECUTION = Execution()


class HebbianLearner:
    """Hebbian learning for the layers of a network.

    Args:
        network: any module; its Conv2d and Linear layers learn, unless they are excluded.
        rule: a key of RULES, or a RuleSetting such as `RULES["kwta"].with_options(k=3)`.
        lr: learning rate, > 0.
        layer_lr: pattern of layer names -> factor on lr; the last match counts.
        include, exclude: patterns of layer names (`conv*`, `features.0`); `exclude` wins.
        step: how an update becomes a step.
        teacher: a teacher signal, for which `learn` and `observe` need labels; None: learning without labels.
        optimizer: builds an optimizer, of torch.optim or like one, from parameter groups; by default plain SGD.
        execution: micro-batches, processes, torch.compile, CUDA graphs.

    Attributes:
        layers: the layers that learn.
        untrainable: layer name -> reason why the rule cannot train it; such a layer keeps its weights.
        optimizer: the optimizer, with one parameter group for each layer.

    Raises:
        ValueError: an unknown rule or option, or no layer is left to learn.
    """

    def __init__(
        self,
        network: nn.Module,
        rule: str | RuleSetting,
        *,
        lr: float,
        layer_lr: Mapping[str, float] | None = None,
        include: Iterable[str] = ("*",),
        exclude: Iterable[str] = (),
        step: StepSetting = PLAIN_STEP,
        teacher: Teacher | None = None,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer] = torch.optim.SGD,
        execution: Execution = PLAIN_EXECUTION,
    ) -> None:
        self.network, self.teacher = network, teacher
        self.setting, self.step_setting, self.execution = setting_of(rule), step, execution
        self.layers, self.untrainable = choose_layers(network, self.setting, include=include, exclude=exclude)
        factors = [self._factor(layer, layer_lr or {}) for layer in self.layers]
        self.optimizer = optimizer(
            [{"params": [layer.module.weight], "lr": lr * f} for layer, f in zip(self.layers, factors, strict=True)]
        )
        self.gradients = Gradients(network, self.layers, self.setting, teacher=teacher, execution=execution)
        self._replay = Replay(self._updates) if execution.replay else None

    @property
    def paused(self) -> bool:
        """While true, forward passes teach nothing."""
        return self.gradients.paused

    @paused.setter
    def paused(self, value: bool) -> None:
        self.gradients.paused = value

    @property
    def without_teacher(self) -> list[str]:
        """Names of the layers that learn without the teacher: they have, or it assigns, fewer units than classes.

        The network's first layer is not among them, though the teacher leaves it alone.
        """
        if self.teacher is None:
            return []
        assigned = {layer.name: self.teacher.assigned_units(layer.name, layer.units) for layer in self.layers}
        rest = [layer.name for layer in self.layers if not layer.is_first]
        return [name for name in rest if assigned[name] < self.teacher.classes]

    @torch.no_grad()
    def learn(self, images: Tensor, labels: Tensor | None = None) -> None:
        """One step: observes a batch and applies its update; arguments and errors as for `observe`.

        Raises:
            NotRecordable: with `Execution.replay`, the network or the rule can't be a CUDA graph.
        """
        if self._replay is None or self.gradients.pending:
            self._apply(self._updates(images, labels))
        else:
            self._apply(self._replay(images, labels, key=self.gradients.key))

    def observe(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Runs the network on a batch, or a part of one, for the next `step`; see `Gradients.observe`."""
        return self.gradients.observe(images, labels)

    @torch.no_grad()
    def step(self) -> None:
        """Applies the update of everything observed since the last step."""
        self._apply(self._scaled(self.gradients.take()))

    def learn_only(self, name: str | None) -> None:
        """From now on one layer learns, for training layer by layer; None: all layers learn."""
        for layer in self.layers:
            layer.learns = name in (None, layer.name)

    def statistics(self) -> dict[str, LayerStatistics]:
        """Layer name -> statistics since the last call, for the layers that learn. All processes must call it."""
        self._share_alive()
        report = {layer.name: layer.statistics() for layer in self.layers if layer.learns}
        for layer in self.layers:
            layer.reset_statistics()
        return report

    @torch.no_grad()
    def finish(self) -> None:
        """Removes the hooks. Under a rule with projection, each weight vector gets length 1."""
        self.gradients.remove_hooks()
        self._replay = None  # frees its memory
        if self.setting.projection:
            for layer in self.layers:
                normalise_(layer.module.weight)

    def state_dict(self) -> dict[str, Any]:
        """Optimizer, statistics and running moments; the weights are in the network's own state_dict.

        Call it between steps. All processes must call it.
        """
        self._share_alive()
        return {
            "optimizer": self.optimizer.state_dict(),
            "layers": {layer.name: layer.state() for layer in self.layers},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        for layer in self.layers:
            layer.load_state(state["layers"][layer.name])
        if self._replay is not None:  # recorded graphs read the old moments
            self._replay = Replay(self._updates)

    def _updates(self, images: Tensor, labels: Tensor | None) -> list[Tensor | None]:
        """From images to what the optimizer gets; `learn` replays this on a GPU."""
        return self._scaled(self.gradients(images, labels))

    def _scaled(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """The gradients times | |w| - 1 |^p for each unit, in place, if the step has a p."""
        if self.step_setting.norm_power is not None:
            for layer, gradient in zip(self.layers, gradients, strict=True):
                if gradient is not None:
                    scale_by_distance_(gradient, layer.module.weight, self.step_setting.norm_power)
        return gradients

    def _apply(self, gradients: Sequence[Tensor | None]) -> None:
        """One step of the optimizer. A layer without a gradient keeps its weights."""
        for layer, group, gradient in zip(self.layers, self.optimizer.param_groups, gradients, strict=True):
            weight = layer.module.weight
            weight.grad = gradient
            if gradient is None:
                continue
            if layer.is_watched:
                layer.update_total += group["lr"] * gradient.norm() / weight.norm()
            layer.steps += 1
        self.optimizer.step()
        for layer in self.layers:
            if self.step_setting.normalise and layer.module.weight.grad is not None:
                normalise_(layer.module.weight)
            layer.module.weight.grad = None

    def _factor(self, layer: LearningLayer, layer_lr: Mapping[str, float]) -> float:
        factor: float = last_match(layer.name, layer_lr, 1.0)
        inputs = layer.module.weight[0].numel()
        return factor / math.sqrt(inputs) if self.step_setting.per_input else factor

    def _share_alive(self) -> None:
        if self.execution.processes is not None:
            for layer in self.layers:
                processes.any_(layer.alive, self.execution.processes)


def normalise_(weight: Tensor) -> None:
    """Each weight vector gets length 1, in place; a zero vector stays zero."""
    norm_K = weight.flatten(1).norm(dim=1)
    weight.div_(geometry.per_row(torch.where(norm_K == 0, 1, norm_K), weight))


def scale_by_distance_(gradient: Tensor, weight: Tensor, power: float) -> None:
    """Multiplies each unit's gradient by | |w| - 1 |^power, in place (SoftHebb; Journé et al., ICLR 2023)."""
    distance_K = (weight.flatten(1).norm(dim=1) - 1).abs()
    gradient.mul_(geometry.per_row(distance_K**power, weight))
