"""The gradient of each layer for a batch of images: the half of Hebbian learning that changes no weight.

A forward hook on each layer adds what the layer saw to the layer's sums. `take` divides the sums once:

    gradient = -dW = -(sum of numerators) / (sum of denominators)        (see engine.py)

So observing two half batches gives the gradient of the whole batch. `Execution` says from outside how the network runs
on a batch (at once or in micro-batches) and which other processes observe a part of it.
Knows no learning rate and no optimizer.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fasthebb import engine, processes
from fasthebb.fused import fused_terms, fuses
from fasthebb.geometry import Layer
from fasthebb.layer import LearningLayer, alive
from fasthebb.micro_batch import runner
from fasthebb.own import OwnError
from fasthebb.precision import full_precision
from fasthebb.responses import RESPONSES, WITH_LENGTHS, WITH_SQUARES, Moments, PreActivation, Response
from fasthebb.rules import Rule, Terms, check_terms
from fasthebb.settings import MOMENTUM, Execution, RuleSetting
from fasthebb.teacher import Teacher, taught, teacher_signal


class Gradients:
    """Computes the gradients of a rule on the layers of a network, through forward hooks.

    Args:
        network: any module that contains the layers.
        layers: the layers that learn.
        setting: the rule.
        teacher: a teacher signal, for which `observe` needs labels; None: no labels.
        execution: micro-batches, processes and compilation; the gradients are the same, except for rounding.

    Attributes:
        paused: while true, forward passes add nothing to the sums.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[LearningLayer],
        setting: RuleSetting,
        *,
        teacher: Teacher | None,
        execution: Execution,
    ) -> None:
        self.network, self.layers, self.setting, self.teacher = network, layers, setting, teacher
        self.response: Response = RESPONSES[setting.response]
        # these responses don't depend on |w|, so they take the layer's output after its projection
        self._projects_first = setting.projection and self.response in WITH_LENGTHS
        self._needs = {
            "projected": self._projects_first,
            "lengths": self.response in WITH_LENGTHS,
            "squares": self.response in WITH_SQUARES,
        }
        self.processes = execution.processes
        self.paused = False
        self._run = runner(execution.micro_batch)
        self._terms = torch.compile(terms_of, dynamic=True) if execution.compile else fastest_terms
        self._labels: Tensor | None = None  # of the images that run through the network now
        self._batch_is_complete = True  # the last of the batch's images run now
        self._hooks = [layer.module.register_forward_hook(self._hook(layer)) for layer in layers]

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> list[Tensor | None]:
        """Observes a batch and takes the gradients; see `observe` and `take`."""
        self.observe(images, labels)
        return self.take()

    @torch.no_grad()
    def observe(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Runs the network forward, in its present mode, and adds what each layer sees to its sums.

        An nn.Sequential runs only up to the child that contains the last layer that learns.
        For a rule with running moments each call is one batch. For the other rules the calls add up.

        Args:
            images: (B, ...), the input of the network.
            labels: (B,), integers, for a teacher; a negative label means unknown.

        Returns:
            The output of the last module that ran.

        Raises:
            ValueError: labels without a teacher, or a teacher without labels.
        """
        if (labels is None) != (self.teacher is None):
            raise ValueError("labels and a teacher go together: give both or neither")

        def begin(start: int, stop: int) -> None:
            self._labels = None if labels is None else labels[start:stop]
            self._batch_is_complete = stop == len(images)

        whole = [layer.module for layer in self.layers if self.setting.running]
        try:
            return self._run(self._modules_to_run(), images, whole=whole, begin=begin)
        finally:
            self._labels = None

    @torch.no_grad()
    def take(self) -> list[Tensor | None]:
        """-dW of each layer from everything observed since the last call, or None if the layer saw nothing."""
        return [layer.take_gradient() for layer in self.layers]

    @property
    def pending(self) -> bool:
        """Whether some layer has sums that `take` has not used yet."""
        return any(layer.sums is not None for layer in self.layers)

    @property
    def key(self) -> Hashable:
        """What a batch's operations depend on, besides the shapes of its tensors; see replay.py."""
        states = [(layer.learns, layer.is_watched, layer.moments is None) for layer in self.layers]
        return (self.paused, self.network.training, *states)

    def remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _modules_to_run(self) -> list[nn.Module]:
        children = [self.network]
        if isinstance(self.network, nn.Sequential) and type(self.network).forward is nn.Sequential.forward:
            children = list(self.network)  # a module may occur twice
        last = max(k for k, child in enumerate(children) for layer in self.layers if _learns_in(layer, child))
        return children[: last + 1]

    def _hook(self, layer: LearningLayer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            module, dtype = layer.module, layer.module.weight.dtype
            learns = layer.learns and not self.paused
            # under autocast the forward product alone has low precision: the sums cancel too much for it
            seen = output.to(dtype) if learns else output
            if self._projects_first:
                seen = projected(module, seen)
            if learns:
                with torch.no_grad(), full_precision(output):
                    self._add(layer, inputs[0].to(dtype), seen)
            if not self.setting.projection:
                return None
            return seen.to(output.dtype) if self._projects_first else projected(module, output)

        return hook

    def _add(self, layer: LearningLayer, x: Tensor, output: Tensor) -> None:
        """Adds the layer's input and output to its sums, chunk by chunk."""
        module = layer.module
        if self.setting.running:  # the gates need the moments of the whole batch
            y_NGK = self.response(engine.pre_activation(module, x, output, **self._needs))
            layer.update_moments(self._moments(y_NGK), MOMENTUM)
        first = 0
        for x_chunk, output_chunk in engine.chunks(module, x, output):
            pre = engine.pre_activation(module, x_chunk, output_chunk, **self._needs)
            teacher_NGK = self._teacher_signal(layer, pre.dot_NGK, slice(first, first + len(x_chunk)))
            first += len(x_chunk)
            with torch.no_grad():  # again: a user's own rule may switch gradients on
                terms = self._terms(self.response, self.setting.rule, layer.options, pre, layer.moments, teacher_NGK)
            try:
                check_terms(terms, pre.dot_NGK)
            except ValueError as error:
                raise OwnError(f"what the rule gives for layer {layer.name}: {error}") from error
            seen = engine.sums(module, x_chunk, terms, layer.spare if layer.sums is None else None)
            layer.spare = None
            if layer.is_watched:
                layer.alive |= alive(terms)
            layer.add(seen)
        if self.processes is not None and self._batch_is_complete:
            seen = layer.sums or engine.nothing(module, self.setting.example_terms(layer.options))
            layer.sent.append(processes.start_sum(seen, self.processes))  # it travels while the next layer works
            layer.sums = None

    def _moments(self, y_NGK: Tensor) -> Moments:
        return Moments.of(y_NGK) if self.processes is None else processes.moments_of(y_NGK, self.processes)

    def _teacher_signal(self, layer: LearningLayer, dot_NGK: Tensor, images: slice) -> Tensor | None:
        if self._labels is None or self.teacher is None:
            return None
        labels = self._labels[images]
        patches, groups, units = dot_NGK.shape
        labels_N = labels.repeat_interleave(patches // len(labels))
        assigned = 0 if layer.is_first else self.teacher.assigned_units(layer.name, units)
        signal_NGK = teacher_signal(labels_N, self.teacher.classes, units, groups=groups, assigned=assigned)
        return signal_NGK.to(dot_NGK.dtype)


def terms_of(
    response: Response,
    rule: Rule,
    options: Mapping[str, Any],
    pre: PreActivation,
    moments: Moments | None,
    teacher_NGK: Tensor | None,
) -> Terms:
    """All element-wise work between the forward product and the products of the update; a pure function."""
    running = [] if moments is None else [moments]
    if teacher_NGK is None:
        return rule(response(pre), *running, **options)
    return taught(rule, response(pre), teacher_NGK, *running, **options)


def fastest_terms(
    response: Response,
    rule: Rule,
    options: Mapping[str, Any],
    pre: PreActivation,
    moments: Moments | None,
    teacher_NGK: Tensor | None,
) -> Terms:
    """`terms_of`, in one kernel where there is one."""
    if teacher_NGK is None and fuses(response, rule, options, pre):
        return fused_terms(response, rule, options, pre)
    return terms_of(response, rule, options, pre, moments, teacher_NGK)


def projected(layer: Layer, output: Tensor) -> Tensor:
    """The layer's output x.w / |w| + b, in place unless a backward pass may need the output."""
    return engine.project_(layer, output.clone() if torch.is_grad_enabled() else output)


def _learns_in(layer: LearningLayer, module: nn.Module) -> bool:
    return layer.learns and any(part is layer.module for part in module.modules())
