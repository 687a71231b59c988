"""What a bench measures: a network, its Hebbian learner, and one batch of random images."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fasthebb.learner import HebbianLearner
from fasthebb.nets.build import build_network
from fasthebb.replay import Replay
from fasthebb.settings import Execution
from fasthebb_cli.bench.measure import Work
from fasthebb_cli.compute.device import Compute
from fasthebb_cli.compute.graphs import replays
from fasthebb_cli.errors import bad_input
from fasthebb_cli.settings.tools import BenchConfig
from fasthebb_cli.stages.rule import attached


@dataclass
class Subject:
    """What is measured.

    Args:
        network: makes a fresh network on the device, in training mode.
        learner: attaches the rule to a network; all layers but the classifier learn.
        images, labels: one batch on the device.
        rule: its name, for the naive form.
        autocast: a context that sets the precision of products.
        replay: a step is recorded once, then replayed as one CUDA graph.
    """

    network: Callable[[], nn.Module]
    learner: Callable[[nn.Module], HebbianLearner]
    images: Tensor
    labels: Tensor
    rule: str
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    replay: bool = False

    def repeated(self, work: Work) -> Work:
        """The work; if steps are replayed, the replayed work."""
        if not self.replay:
            return work

        def without_results() -> list[Tensor | None]:
            work()
            return []

        return Replay(without_results)


def subject_of(
    bench: BenchConfig,
    compute: Compute,
    *,
    width: float | None = None,
    batch: int | None = None,
    size: int | None = None,
) -> Subject:
    """The subject of the settings; width, batch and image size may be given instead."""
    arguments = bench.model.arguments() | ({} if width is None else {"width": width})
    batch, size = batch or bench.batch, size or bench.images

    def network() -> nn.Module:
        torch.manual_seed(0)
        with bad_input():
            made = build_network(
                bench.model.name, arguments, channels=3, size=size, classes=bench.classes, whitening=False
            )
        return compute.place(made).train()

    def learner(network: nn.Module) -> HebbianLearner:
        more = {"layer_lr": bench.rule.layer_lr, "exclude": ["classifier*"]}
        return learner_of(bench, compute, network, micro_batch=bench.gpu.micro_batch, **more)

    torch.manual_seed(0)
    images = compute.arrange(torch.randn(batch, 3, size, size).to(compute.device))
    labels = torch.randint(bench.classes, (batch,)).to(compute.device)
    return Subject(network, learner, images, labels, bench.rule.name, compute.autocast, _replays(bench, compute))


def learner_of(
    bench: BenchConfig, compute: Compute, network: nn.Module, *, micro_batch: int | None = None, **arguments: Any
) -> HebbianLearner:
    execution = Execution(micro_batch=micro_batch, compile=compute.compile, replay=_replays(bench, compute))
    return attached(bench.rule, network, "model", lr=1e-3, execution=execution, **arguments)


def learning(learner: HebbianLearner, images: Tensor, autocast: Callable[[], AbstractContextManager[object]]) -> Work:
    """One Hebbian step on the images."""

    def work() -> None:
        with autocast():
            learner.learn(images)

    return work


def hebbian_step(subject: Subject) -> Work:
    return learning(subject.learner(subject.network()), subject.images, subject.autocast)


def _replays(bench: BenchConfig, compute: Compute) -> bool:
    return replays(bench.gpu, compute, bench.model.name, bench.rule.name)
