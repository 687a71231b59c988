"""The outputs of a network's layers over many batches, collected by forward hooks and kept on the CPU."""

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasthebb_cli.compute import processes
from fasthebb_cli.errors import InputError
from fasthebb_cli.stages.task import Batch


def probed_layers(network: nn.Module, patterns: list[str] | None) -> dict[str, nn.Module]:
    """Layers by name: those that match a pattern, or the network's children but `whitening` and `classifier`.

    If there is only one such child, as in networks of torchvision, its own children are taken instead.

    Raises:
        InputError: a pattern matches nothing.
    """
    children = {name: module for name, module in network.named_children() if name not in ("whitening", "classifier")}
    while len(children) == 1:
        ((outer, module),) = children.items()
        inner = {f"{outer}.{name}": child for name, child in module.named_children()}
        if not inner:
            break
        children = inner
    if patterns is None:
        return children
    modules = {name: module for name, module in network.named_modules() if name}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in modules):
            raise InputError(f"probe.layers: nothing is called {pattern!r}; the network has: {', '.join(children)}")
    return {name: module for name, module in modules.items() if any(fnmatchcase(name, p) for p in patterns)}


class Features:
    """The flattened outputs of layers, float32 (B, F) of each batch, and the labels (B,).

    Args:
        layers: by name.
        pool: outputs of convolutions are averaged to at most pool x pool; 0: they are kept whole.
    """

    def __init__(self, layers: Mapping[str, nn.Module], pool: int) -> None:
        self.layers, self.pool = layers, pool
        self.outputs: dict[str, list[Tensor]] = {name: [] for name in layers}
        self.labels: list[Tensor] = []

    def collect(self, network: nn.Module, batch: Batch) -> None:
        """Runs the network on a batch and keeps the layers' outputs."""
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
        """The first process gets all processes' features and labels, in the order of the images."""
        for name in list(self.outputs):
            self.outputs[name] = _in_order(processes.gathered(self.outputs[name]))
        self.labels = _in_order(processes.gathered(self.labels))

    def take(self, name: str) -> Tensor:
        """One layer's features (N, F) of all images, which are kept no longer."""
        return torch.cat(self.outputs.pop(name))

    @torch.no_grad()
    def check(self, network: nn.Module, image: Tensor, images: int, named: Sequence[str]) -> None:
        """Tries one image of shape (1, C, S, S), and leaves out layers that do not give one tensor a forward pass.

        Args:
            named: layers that the user asked for.

        Raises:
            InputError: a layer that the user asked for is left out, or none is left, or the features of so many images
                need more than half of this machine's memory.
        """
        self.collect(network, Batch(image, torch.zeros(1, dtype=torch.int64), total=1))
        taken = {name: len(outputs) for name, outputs in self.outputs.items() if len(outputs) != 1}
        for name, count in taken.items():
            if name in named or len(taken) == len(self.layers):
                raise InputError(f"probe.layers: the network takes {count} tensors from {name}, not one; name another")
        self.layers = {name: layer for name, layer in self.layers.items() if name not in taken}
        wanted = 4 * images * sum(self.outputs[name][0].numel() for name in self.layers)
        self.outputs, self.labels = {name: [] for name in self.layers}, []
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if wanted > memory / 2:
            raise InputError(
                f"probe: the features take {wanted / 2**30:.0f} GiB, and half of the memory is "
                f"{memory / 2**31:.0f} GiB; choose fewer probe.layers, a smaller probe.pool or label_fraction"
            )

    def _keep(self, name: str, output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        if output.dim() == 4 and self.pool:
            output = F.adaptive_avg_pool2d(output, min(self.pool, *output.shape[2:]))
        # a copy: the layer after this one may change its input in place
        self.outputs[name].append(output.flatten(1).to("cpu", torch.float32, copy=True))


def _in_order(by_process: list[list[Tensor]]) -> list[Tensor]:
    """Each process's part of the first batch, then of the second, and so on."""
    return [part for batch in zip(*by_process, strict=True) for part in batch]
