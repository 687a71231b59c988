"""What every layer knows: heads on the frozen features of each, all from one pass over the images.

The labelled training images and those of the split run through the network once, in evaluation mode; every layer's
output, averaged to a small grid, is kept in memory. Then each head learns from the labelled ones and is scored on the
others. The network stays as it is. A killed probe starts over: its features would be a checkpoint of gigabytes.
"""

import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from importlib.util import find_spec
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasthebb_cli.compute import processes
from fasthebb_cli.compute.signals import stops_raise
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.probe import ProbeConfig
from fasthebb_cli.stages.evaluate import images_of
from fasthebb_cli.stages.finetune import labelled
from fasthebb_cli.stages.first_step import calibrate_batch_norm, fit_whitening
from fasthebb_cli.stages.heads import HEADS, NEEDS, Samples
from fasthebb_cli.stages.task import Batch, Context, Task


def probe(context: Context) -> Task:
    settings, dataset, network = context.settings, context.dataset, context.network
    assert isinstance(settings, ProbeConfig)
    missing = sorted({NEEDS[name] for name in settings.methods if name in NEEDS and find_spec(NEEDS[name]) is None})
    if missing:
        raise InputError(f'probe.methods needs {", ".join(missing)}: pip install "fasthebb[probe]"')
    train, test = labelled(dataset, context.config), images_of(dataset, settings)
    if context.begins:
        fit_whitening(context)
        calibrate_batch_norm(context)
    network.eval()
    layers = probed_layers(network, settings.layers)
    kept = Features(layers, settings.pool)
    source = dataset.source
    empty = torch.zeros(1, source.channels, source.size, source.size, device=context.compute.device)
    kept.check(network, empty, len(train) + len(test))

    def batches(epoch: int, start: int) -> Iterator[Batch]:
        streams = [context.batches(indices, settings.batch_size) for indices in (train, test)]
        return chain(*streams)

    @torch.no_grad()
    def step(epoch: int, step: int, batch: Batch) -> None:
        with context.compute.autocast():
            kept.collect(network, batch)

    def validate(epoch: int) -> Iterator[None]:
        kept.gather()
        yield

    def end_epoch(epoch: int) -> dict[str, Any]:
        return {"probes": processes.from_first(score)}

    @stops_raise()
    def score() -> dict[str, dict[str, float]]:
        labels = torch.cat(kept.labels)
        scores: dict[str, dict[str, float]] = {}
        for name in layers:
            features = torch.cat(kept.parts.pop(name))
            known, unknown = features.split([len(train), len(test)])
            samples = Samples(known, labels[: len(train)], unknown, labels[len(train) :], len(dataset.classes))
            results = [HEADS[method](samples, settings, context.compute.device) for method in settings.methods]
            scores[name] = {key: value for result in results for key, value in result.items()}
        return scores

    def finish(last: Mapping[str, Any]) -> dict[str, Any]:
        chosen_on = len(test) if settings.split == "validation" else 0
        return {
            "top1": None,
            "top5": None,
            "loss": None,
            "layers": last["probes"],
            "split": settings.split,
            "samples": len(test),
            "labels_train": max(context.labels_train, len(train)),
            "labels_validation": max(context.labels_validation, chosen_on),
        }

    return Task(
        epochs=1,
        samples=len(train) + len(test),
        batch_size=settings.batch_size,
        batches=batches,
        step=step,
        validate=validate,
        end_epoch=end_epoch,
        finish=finish,
        resumable=False,
    )


def probed_layers(network: nn.Module, patterns: list[str] | None) -> dict[str, nn.Module]:
    """Modules by name: the network's children but whitening and classifier, or all that match a pattern.

    Where there is but one child, as in networks of torchvision, it is the children of that.

    Raises:
        InputError: a pattern matches nothing.
    """
    children = {name: module for name, module in network.named_children() if name not in ("whitening", "classifier")}
    while len(children) == 1:
        ((outer, module),) = children.items()
        inside = {f"{outer}.{name}": child for name, child in module.named_children()}
        if not inside:
            break
        children = inside
    if patterns is None:
        return children
    every = {name: module for name, module in network.named_modules() if name}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise InputError(f"probe.layers: nothing is called {pattern!r}; the network has: {', '.join(children)}")
    return {name: module for name, module in every.items() if any(fnmatchcase(name, p) for p in patterns)}


class Features:
    """The flattened outputs of layers over all batches, on the CPU."""

    def __init__(self, layers: Mapping[str, nn.Module], pool: int) -> None:
        self.layers, self.pool = layers, pool
        self.parts: dict[str, list[Tensor]] = {name: [] for name in layers}
        self.labels: list[Tensor] = []

    def collect(self, network: nn.Module, batch: Batch) -> None:
        """Runs the network on a batch and keeps what its layers hand on."""
        hooks = [
            module.register_forward_hook(lambda m, x, output, name=name: self._keep(name, output))
            for name, module in self.layers.items()
        ]
        try:
            network(batch.images)
        finally:
            for hook in hooks:
                hook.remove()
        self.labels.append(batch.labels.cpu())

    def gather(self) -> None:
        """The first process gets what all have kept, in the order of the images; the others keep nothing."""
        for name in list(self.parts):
            self.parts[name] = _in_order(processes.gathered(self.parts[name]))
        self.labels = _in_order(processes.gathered(self.labels))

    @torch.no_grad()
    def check(self, network: nn.Module, image: Tensor, images: int) -> None:
        """Whether the features of so many images fit into half of the memory.

        Raises:
            InputError: they don't.
        """
        self.collect(network, Batch(image, torch.zeros(1, dtype=torch.int64), total=1))
        wanted = 4 * images * sum(part.numel() for parts in self.parts.values() for part in parts)
        self.parts, self.labels = {name: [] for name in self.layers}, []
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if wanted > memory / 2:
            raise InputError(
                f"probe: the features take {wanted / 2**30:.0f} GiB, and half of the memory is "
                f"{memory / 2**31:.0f} GiB; choose fewer probe.layers, a smaller probe.pool or label_fraction"
            )

    def _keep(self, name: str, output: Tensor) -> None:
        if output.dim() == 4 and self.pool:
            output = F.adaptive_avg_pool2d(output, min(self.pool, *output.shape[2:]))
        self.parts[name].append(output.flatten(1).to("cpu", torch.float32, copy=True))  # what follows may be in place


def _in_order(everyone: list[list[Tensor]]) -> list[Tensor]:
    """Batch by batch, the parts of all processes one after the other."""
    return [part for batch in zip(*everyone, strict=True) for part in batch]
