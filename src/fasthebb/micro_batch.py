"""Runs a network on a large batch in micro-batches, to save memory: the numbers are those of the whole batch.

Each run of layers between two that must see all images (batch norm) works on one micro-batch after the other. Where
gradients are wanted, what lies within such a run is computed again in the backward pass instead of being kept.
"""

from collections.abc import Callable, Collection, Iterator
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Begin = Callable[[int, int], None]


class InMicroBatches(nn.Module):
    """A network that takes its batches in micro-batches.

    Args:
        size: images in a micro-batch, at least 1.

    Raises:
        ValueError: batch norm lies inside of something that is not a plain nn.Sequential.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size
        layers(network)

    def forward(self, images: Tensor) -> Tensor:
        return in_micro_batches(layers(self.network), images, self.size)


def layers(network: nn.Module) -> list[nn.Module]:
    """What a network does, one after the other.

    Raises:
        ValueError: as InMicroBatches.
    """
    return list(_layers("the network", network))


def in_micro_batches(
    modules: list[nn.Module],
    x: Tensor,
    size: int,
    *,
    whole: Collection[nn.Module] = (),
    begin: Begin = lambda start, stop: None,
) -> Tensor:
    """The modules' output for x.

    Args:
        whole: modules besides batch norm that must see all images at once, or that have others inside that must.
        begin: called before each micro-batch with its first image and the one after its last.
    """

    def needs_all(module: nn.Module) -> bool:
        return isinstance(module, _BatchNorm) or any(inner in whole for inner in module.modules())

    for at_once, run in groupby(modules, needs_all):
        steps = nn.Sequential(*run)
        if at_once:
            begin(0, len(x))
            x = steps(x)
            continue
        outputs, start = [], 0
        for piece in x.split(size):
            begin(start, start + len(piece))
            start += len(piece)
            outputs.append(checkpoint(steps, piece, use_reentrant=False) if torch.is_grad_enabled() else steps(piece))
        x = torch.cat(outputs)
    return x


def _layers(name: str, module: nn.Module) -> Iterator[nn.Module]:
    if type(module) is nn.Sequential:
        for child_name, child in module._modules.items():  # named_children leaves out one that stands twice
            if child is not None:
                yield from _layers(child_name, child)
    elif not isinstance(module, _BatchNorm) and any(isinstance(inner, _BatchNorm) for inner in module.modules()):
        raise ValueError(f"{name} is no plain sequence of layers and has batch norm inside: it needs the whole batch")
    else:
        yield module
