"""Attaches a rule to the plain Conv2d and Linear layers of any network: they learn while it runs forward.

    learner = HebbianLearner(network, "hpca", lr=0.1, exclude=["classifier*"])
    for images in loader:
        learner.learn(images)  # or in micro-batches: learner.observe(images), as often as it takes, and learner.step()
    learner.finish()

A forward hook adds each layer's numerator and denominator to what it has seen since the last step, so observing two
half batches equals observing the whole one. The update reaches the weights through a torch optimizer as -dW.
Where several processes observe a part of each batch, their sums are added up while the next layer works.
Knows nothing of data, schedules or files.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fasthebb import engine, geometry
from fasthebb.layer import LayerStatistics, LearningLayer, alive
from fasthebb.micro_batch import in_micro_batches, layers
from fasthebb.patterns import last_match, matches
from fasthebb.precision import full_precision
from fasthebb.replay import Replay
from fasthebb.responses import RESPONSES, WITH_LENGTHS, Moments, PreActivation, Response
from fasthebb.rules import Rule, Terms
from fasthebb.settings import MOMENTUM, RuleSetting, StepSetting, setting_of
from fasthebb.teacher import taught, teacher_signal

PLAIN_STEP = StepSetting()


class HebbianLearner:
    """Hebbian learning for the layers of a network, through forward hooks.

    Args:
        network: any module; its Conv2d and Linear layers learn, unless excluded.
        rule: a key of RULES, with its usual response, or a RuleSetting.
        lr: learning rate, > 0.
        options: keyword arguments of the rule.
        include, exclude: patterns of layer names (`conv*`, `features.0`); exclusion wins.
        layer_lr: factors on lr for layers whose name matches a pattern; the last match counts.
        layer_options: options of the rule for layers whose name matches a pattern, besides `options`.
        step: how an update becomes a step.
        classes: of the labels that `observe` is then given: a teacher signal assigns units to classes in all learning
            layers but the network's first.
        assigned: how many of a layer's units are, by pattern of layer names; all of them unless given, and in any
            case a whole number a class.
        optimizer: builds a torch optimizer from parameter groups; plain SGD unless given.
        compile: the element-wise work of responses and rules is fused by torch.compile; equal to rounding.
        processes: each of them observes a part of every batch, and all make the step of the whole.
        micro_batch: images that run through the network at a time; the numbers are those of the whole batch.
        replay: `learn` records what it asks of a GPU, and replays it. For one process, without `compile`, and networks
            and rules that decide nothing in Python.

    While `paused` is true, forward passes teach nothing.
    `untaught` names those in which a teacher assigns no unit, as they have fewer units than there are classes.
    `unserved` says of the layers that the patterns take in but the rule can't serve why; they keep their weights.

    Raises:
        ValueError: an unknown rule or option, or patterns that leave no layer.
    """

    def __init__(
        self,
        network: nn.Module,
        rule: str | RuleSetting,
        *,
        lr: float,
        options: Mapping[str, Any] | None = None,
        include: Iterable[str] = ("*",),
        exclude: Iterable[str] = (),
        layer_lr: Mapping[str, float] | None = None,
        layer_options: Mapping[str, Mapping[str, Any]] | None = None,
        step: StepSetting = PLAIN_STEP,
        classes: int | None = None,
        assigned: Mapping[str, int] | None = None,
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] = torch.optim.SGD,
        compile: bool = False,
        processes: dist.ProcessGroup | None = None,
        micro_batch: int | None = None,
        replay: bool = False,
    ) -> None:
        self.network = network
        self.setting = setting_of(rule)
        self.rule, self.running = self.setting.rule, self.setting.running
        self.response: Response = RESPONSES[self.setting.response]
        self.step_setting, self.classes, self.assigned = step, classes, dict(assigned or {})
        self.labels: Tensor | None = None
        self.paused = False
        self.processes, self.micro_batch = processes, micro_batch
        self._last_micro_batch = True
        self._respond = torch.compile(_respond, dynamic=True) if compile else _respond
        self.layers: list[LearningLayer] = []
        self.unserved: dict[str, str] = {}
        include, exclude = list(include), list(exclude)
        for name, module in network.named_modules():
            if not matches(name, include) or matches(name, exclude):
                continue
            chosen = dict(options or {}) | dict(last_match(name, layer_options or {}, {}))
            reason = _unserved(module, self.setting.tried(chosen).competitive)
            if reason is not None:
                self.unserved[name] = reason
            elif isinstance(module, nn.Linear | nn.Conv2d):
                self.layers.append(LearningLayer(name, module, chosen))
        if not self.layers:
            found = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
            raise ValueError(
                "no Conv2d or Linear layer is left to learn: see include and exclude; there are: " + ", ".join(found)
            )
        self._first = next(module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d))
        self.optimizer = optimizer(
            [{"params": [layer.module.weight], "lr": lr * self._factor(layer, layer_lr or {})} for layer in self.layers]
        )
        self._hooks = [layer.module.register_forward_hook(self._hook(layer)) for layer in self.layers]
        self._replay = Replay(self._gradients_of) if replay else None

    @torch.no_grad()
    def learn(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Observes a batch and makes its step; see `observe`.

        Raises:
            NotRecordable: with `replay`, a network that waits for numbers.
        """
        if self._replay is None or any(layer.sums is not None for layer in self.layers):
            gradients: Sequence[Tensor | None] = self._gradients_of(images, labels)
        else:
            state = [(layer.learns, layer.is_watched, layer.moments is None) for layer in self.layers]
            gradients = self._replay(images, labels, key=(self.paused, self.network.training, *state))
        self._apply(gradients)

    @torch.no_grad()
    def observe(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Runs the network forward, in its present mode, and adds what each layer saw to its sums.

        An nn.Sequential runs no further than to the child that holds the last layer that learns.
        A rule with running moments takes each call for a batch; for the others, micro-batches add up to the whole.

        Args:
            labels: (B,), for the teacher signal; below 0 where there is none.

        Returns:
            The output of what ran last.

        Raises:
            ValueError: labels without `classes`, or the reverse.
        """
        if (labels is None) != (self.classes is None):
            raise ValueError("labels and classes go together: they are the teacher signal")
        children = [self.network]
        if isinstance(self.network, nn.Sequential) and type(self.network).forward is nn.Sequential.forward:
            children = list(self.network)  # where a module may stand twice
        last = max(k for k, child in enumerate(children) for layer in self.layers if _learns_in(layer, child))
        needed, total = children[: last + 1], len(images)

        def begin(start: int, stop: int) -> None:
            self.labels = None if labels is None else labels[start:stop]
            self._last_micro_batch = stop == total

        try:
            begin(0, total)
            if self.micro_batch is None or total <= self.micro_batch:
                for child in needed:
                    images = child(images)
                return images
            whole = [layer.module for layer in self.layers if self.running]
            modules = [module for child in needed for module in layers(child)]
            return in_micro_batches(modules, images, self.micro_batch, whole=whole, begin=begin)
        finally:
            self.labels = None

    @property
    def untaught(self) -> list[str]:
        if self.classes is None:
            return []
        units = {layer.name: len(layer.module.weight) // geometry.groups_of(layer.module) for layer in self.layers}
        return [
            layer.name for layer in self.layers
            if layer.module is not self._first
            and min(self._assigned(layer, units[layer.name]), units[layer.name]) < self.classes
        ]  # fmt: skip

    def learn_only(self, name: str | None) -> None:
        """One layer learns, for learning layer by layer; None: all do."""
        for layer in self.layers:
            layer.learns = name in (None, layer.name)

    @torch.no_grad()
    def step(self) -> None:
        """Applies the update of everything observed since the last step."""
        self._apply(self._gradients())

    def _gradients_of(self, images: Tensor, labels: Tensor | None) -> list[Tensor | None]:
        self.observe(images, labels)
        return self._gradients()

    def _gradients(self) -> list[Tensor | None]:
        """-dW of every layer from everything observed since the last step; None where that is nothing."""
        gradients: list[Tensor | None] = []
        for layer in self.layers:
            weight = layer.module.weight
            for receive in layer.sent:
                layer.add(receive())
            layer.sent = []
            if layer.sums is None:
                gradients.append(None)
                continue
            gradient = layer.sums.gradient_(weight)
            if self.step_setting.norm_power is not None:
                distance_K = (weight.flatten(1).norm(dim=1) - 1).abs()
                gradient.mul_(geometry.per_row(distance_K**self.step_setting.norm_power, weight))
            layer.spare = gradient if isinstance(layer.module, nn.Linear) else None
            layer.sums = None
            gradients.append(gradient)
        return gradients

    def _apply(self, gradients: Sequence[Tensor | None]) -> None:
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
                _normalise(layer.module.weight)
            layer.module.weight.grad = None

    def statistics(self) -> dict[str, LayerStatistics]:
        """Statistics since the last call by layer name, of the layers that learn; all processes call it together."""
        self._share_alive()
        report = {layer.name: layer.statistics() for layer in self.layers if layer.learns}
        for layer in self.layers:
            layer.reset_statistics()
        return report

    @torch.no_grad()
    def finish(self) -> None:
        """Removes the hooks. Under a projecting rule each weight vector becomes its direction."""
        for hook in self._hooks:
            hook.remove()
        self._replay = None  # and the memory that it holds
        if self.setting.projection:
            for layer in self.layers:
                _normalise(layer.module.weight)

    def state_dict(self) -> dict[str, Any]:
        """Optimizer, statistics and running moments; the weights are the network's own. Call it between steps, in all
        processes.
        """
        self._share_alive()
        layers = {
            layer.name: {
                "alive": layer.alive,
                "update_total": layer.update_total,
                "steps": layer.steps,
                "moments": None if layer.moments is None else vars(layer.moments),
            }
            for layer in self.layers
        }
        return {"optimizer": self.optimizer.state_dict(), "layers": layers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        for layer in self.layers:
            saved = state["layers"][layer.name]
            layer.alive.copy_(saved["alive"])
            layer.update_total.copy_(saved["update_total"])
            layer.steps = saved["steps"]
            device = layer.module.weight.device
            moments = saved["moments"]
            layer.moments = moments and Moments(
                **{name: value.to(device, copy=True) for name, value in moments.items()}
            )
        if self._replay is not None:  # what was recorded knows the moments before
            self._replay = Replay(self._gradients_of)

    def _share_alive(self) -> None:
        if self.processes is not None:
            for layer in self.layers:
                alive = layer.alive.int()
                dist.all_reduce(alive, dist.ReduceOp.MAX, group=self.processes)
                layer.alive.copy_(alive)

    def _factor(self, layer: LearningLayer, layer_lr: Mapping[str, float]) -> float:
        factor: float = last_match(layer.name, layer_lr, 1.0)
        inputs = layer.module.weight[0].numel()
        return factor / math.sqrt(inputs) if self.step_setting.per_input else factor

    def _hook(self, layer: LearningLayer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            module, dtype = layer.module, layer.module.weight.dtype
            if layer.learns and not self.paused:
                # under autocast only the forward product is of low precision: the sums cancel too much for it
                with torch.no_grad(), full_precision(output):
                    self._learn(layer, inputs[0].to(dtype), output.to(dtype))
            if not self.setting.projection:
                return None
            return engine.project_(module, output.clone() if torch.is_grad_enabled() else output)

        return hook

    def _learn(self, layer: LearningLayer, x: Tensor, output: Tensor) -> None:
        """Adds what one batch says to the layer's sums, chunk by chunk."""
        module, lengths = layer.module, self.response in WITH_LENGTHS
        if self.running:  # the gates need the whole batch's moments
            y_NGK = self.response(engine.pre_activation(module, x, output, lengths=lengths))
            batch = Moments.of(y_NGK, self.processes)
            if layer.moments is None:
                layer.moments = batch
            else:
                layer.moments.move_to_(batch, MOMENTUM)
        first = 0
        for x_part, output_part in engine.chunks(module, x, output):
            pre = engine.pre_activation(module, x_part, output_part, lengths=lengths)
            teacher = self._teacher(layer, pre.dot_NGK, slice(first, first + len(x_part)))
            first += len(x_part)
            terms = self._respond(self.response, self.rule, layer.options, pre, layer.moments, teacher)
            seen = engine.sums(module, x_part, terms, layer.spare if layer.sums is None else None)
            layer.spare = None
            if layer.is_watched:
                layer.alive |= alive(terms)
            layer.add(seen)
        if self.processes is not None and self._last_micro_batch:
            seen = layer.sums or engine.nothing(module, self.setting.tried(layer.options))
            layer.sent.append(seen.send(self.processes))
            layer.sums = None

    def _teacher(self, layer: LearningLayer, dot_NGK: Tensor, images: slice) -> Tensor | None:
        if self.labels is None or self.classes is None:
            return None
        labels = self.labels[images]
        patches, groups, units = dot_NGK.shape
        labels_N = labels.repeat_interleave(patches // len(labels))
        assigned = self._assigned(layer, units)
        return teacher_signal(labels_N, self.classes, units, groups=groups, assigned=assigned).to(dot_NGK.dtype)

    def _assigned(self, layer: LearningLayer, units: int) -> int:
        """Of the units of a group, how many a teacher may assign; none in the network's first layer."""
        return 0 if layer.module is self._first else last_match(layer.name, self.assigned, units)


def _respond(
    response: Response,
    rule: Rule,
    options: Mapping[str, Any],
    pre: PreActivation,
    moments: Moments | None,
    teacher: Tensor | None,
) -> Terms:
    """All element-wise work between a layer's forward product and the products of its update."""
    running = [] if moments is None else [moments]
    if teacher is None:
        return rule(response(pre), *running, **options)
    return taught(rule, response(pre), teacher, *running, **options)


def _unserved(module: nn.Module, competitive: bool) -> str | None:
    """Why a module with weights can't learn by the rule; None if it can, or if there is nothing to learn."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        groups = module.groups if isinstance(module, nn.Conv2d) else 1
        if competitive and len(module.weight) == groups:
            return "one unit a group, and the rule needs several that compete"
        return None
    own = [value for value in module.parameters(recurse=False) if value.dim() > 1]
    return f"a {type(module).__name__}, and rules are for Conv2d and Linear" if own else None


def _learns_in(layer: LearningLayer, module: nn.Module) -> bool:
    return layer.learns and any(part is layer.module for part in module.modules())


def _normalise(weight: Tensor) -> None:
    norm_K = weight.flatten(1).norm(dim=1)
    weight.div_(geometry.per_row(torch.where(norm_K == 0, 1, norm_K), weight))
