"""A Hebbian step of a network beside the least work there is, a backprop step and the naive form."""

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasthebb.learner import HebbianLearner
from fasthebb.replay import Replay
from fasthebb_cli.bench.measure import Work, alternating_ms, flops, paired_quartiles, peak_bytes
from fasthebb_cli.bench.naive import NAIVE, unfolded

NAIVE_BYTES = 1 << 29  # of one (N, K, D) tensor at most: the naive form runs on as many images as that allows
NAIVE_REPEATS = 5  # at most; each takes seconds


@dataclass
class Subject:
    """What is measured.

    Args:
        network: makes a fresh one on the device, in training mode.
        learner: attaches the rule to it, with all but the classifier learning.
        images, labels: one batch on the device.
        rule: name, for the naive form.
        autocast: the precision of products, as a context.
        replay: a step is recorded once, and replayed as one CUDA graph.
    """

    network: Callable[[], nn.Module]
    learner: Callable[[nn.Module], HebbianLearner]
    images: Tensor
    labels: Tensor
    rule: str
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    replay: bool = False

    def repeated(self, work: Work) -> Work:
        """The work, replayed where steps are."""
        if not self.replay:
            return work

        def without_results() -> list[Tensor | None]:
            work()
            return []

        return Replay(without_results)


def measure_step(subject: Subject, *, repeats: int, naive: bool) -> dict[str, Any]:
    """Times (ms), counted work (flops) and peak memory (bytes) of step, minimum and backprop; the naive form's time.

    `ratios` are of times in the same repeat: lower quartile, median, upper quartile.
    """
    device = subject.images.device
    makers = {"step": hebbian_step, "minimum": minimum, "backprop": backprop}
    contenders = {name: make(subject) for name, make in makers.items()}
    times = alternating_ms(contenders, repeats, device)
    result: dict[str, Any] = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    pairs = [("step", "minimum"), ("step", "backprop"), ("backprop", "minimum")]
    result["ratios"] = {f"{one}/{other}": paired_quartiles(times[one], times[other]) for one, other in pairs}
    result["naive_ms"] = None
    slow = naive_form(subject) if naive else {}
    if slow:
        layers = {name: work for name, (work, _) in slow.items()}
        beside = alternating_ms(layers | {"step": contenders["step"]}, min(repeats, NAIVE_REPEATS), device)
        parts = ([scale * value for value in beside[name]] for name, (_, scale) in slow.items())
        whole_batch = [sum(values) for values in zip(*parts, strict=True)]
        result["naive_ms"] = statistics.median(whole_batch)
        result["ratios"]["naive/step"] = paired_quartiles(whole_batch, beside["step"])
    result["flops"] = {name: flops(make(subject)) for name, make in makers.items()}  # a replayed step counts nothing
    result["peak_bytes"] = {name: peak_bytes(make(subject), device) for name, make in makers.items()}
    return result


def hebbian_step(subject: Subject) -> Work:
    learner = subject.learner(subject.network())

    def work() -> None:
        with subject.autocast():
            learner.learn(subject.images)

    return work


def backprop(subject: Subject) -> Work:
    """Forward, backward and an SGD step of all parameters."""
    network = subject.network()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        with subject.autocast():
            loss = F.cross_entropy(network(subject.images), subject.labels)
        loss.backward()
        optimizer.step()

    return subject.repeated(work)


def minimum(subject: Subject) -> Work:
    """Each learning layer's forward product and weight-gradient product on what it sees, and nothing else; float32."""
    seen = layer_inputs(subject)
    parts = [layer_minimum(layer, x) for layer, x in seen.values()]

    def work() -> None:
        for part in parts:
            part()

    return subject.repeated(work)


def layer_minimum(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Work:
    weight = layer.weight.detach()
    with torch.no_grad():
        gate = torch.randn_like(layer(x))

    @torch.no_grad()
    def work() -> None:
        if isinstance(layer, nn.Linear):
            F.linear(x, weight)
            _ = gate.flatten(0, -2).T @ x.flatten(0, -2)
            return
        F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        padding = [0, 0] if isinstance(layer.padding, str) else list(layer.padding)
        torch.ops.aten.convolution_backward(
            gate, x, weight, None, layer.stride, padding, layer.dilation, False, [0, 0], layer.groups,
            [False, True, False],
        )  # fmt: skip

    return work


@torch.no_grad()
def layer_inputs(subject: Subject) -> dict[str, tuple[nn.Conv2d | nn.Linear, Tensor]]:
    """Each learning layer of a fresh network, with what it is called with on the batch."""
    network = subject.network()
    learner = subject.learner(network)
    layers = {layer.name: layer.module for layer in learner.layers}
    learner.finish()
    seen: dict[str, tuple[nn.Conv2d | nn.Linear, Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda m, x, name=name: seen.__setitem__(name, (m, x[0].detach())))
        for name, module in layers.items()
    ]
    network(subject.images)
    for hook in hooks:
        hook.remove()
    return seen


def naive_form(subject: Subject) -> dict[str, tuple[Work, float]]:
    """The naive form of each layer on as many images as fit, and by how much the whole batch is more than that.

    Empty for a rule, or groups, that it is not written for.
    """
    seen = layer_inputs(subject)
    grouped = any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer, _ in seen.values())
    if subject.rule not in NAIVE or grouped:
        return {}
    found: dict[str, tuple[Work, float]] = {}
    for name, (layer, x) in seen.items():
        w_KD = layer.weight.detach().flatten(1)
        patches = len(unfolded(layer, x[:1]))
        images = max(1, min(len(x), NAIVE_BYTES // (4 * patches * w_KD.numel())))
        found[f"naive {name}"] = partial(_naive, NAIVE[subject.rule], layer, x[:images], w_KD), len(x) / images
    return found


@torch.no_grad()
def _naive(rule: Callable[[Tensor, Tensor], Tensor], layer: nn.Linear | nn.Conv2d, x: Tensor, w_KD: Tensor) -> None:
    rule(unfolded(layer, x), w_KD)
