"""Runs a network on a large batch in micro-batches, which saves memory; the numbers are those of the whole batch.

Batch norm must see all images at once. The layers between two such modules work on one micro-batch after the other.
Where gradients are wanted, their intermediate results are not kept: the backward pass computes them again.
"""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Begin = Callable[[int, int], None]
Run = Callable[..., Tensor]  # like run_whole


class InMicroBatches(nn.Module):
    """A network that runs on its batches in micro-batches.

    Args:
        size: number of images in a micro-batch, >= 1.

    Raises:
        ValueError: batch norm lies inside a module that is not a plain nn.Sequential.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size
        layers(network)

    def forward(self, images: Tensor) -> Tensor:
        return in_micro_batches(layers(self.network), images, self.size)


def runner(size: int | None) -> Run:
    """How modules run on a batch: in micro-batches of `size` images, or at once if it is None."""
    return run_whole if size is None else partial(run_in_micro_batches, size=size)


def run_whole(modules: list[nn.Module], x: Tensor, *, whole: Collection[nn.Module], begin: Begin) -> Tensor:
    """The modules' output for x, (B, ...), all images at once; the arguments are those of `in_micro_batches`."""
    begin(0, len(x))
    for module in modules:
        x = module(x)
    return x


def run_in_micro_batches(
    modules: list[nn.Module], x: Tensor, *, whole: Collection[nn.Module], begin: Begin, size: int
) -> Tensor:
    """The same in micro-batches of `size` images.

    Raises:
        ValueError: as InMicroBatches.
    """
    if len(x) <= size:
        return run_whole(modules, x, whole=whole, begin=begin)
    return in_micro_batches([layer for m in modules for layer in layers(m)], x, size, whole=whole, begin=begin)


def layers(network: nn.Module) -> list[nn.Module]:
    """The network's modules in the order in which they run, without the nn.Sequential around them.

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
    """The modules' output for x, (B, ...).

    Args:
        size: number of images in a micro-batch, >= 1.
        whole: modules that must see all images at once, besides batch norm; also as a part of another module.
        begin: called before each micro-batch runs, with the index of its first image and of its last plus 1.
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
        for child_name, child in module._modules.items():  # named_children leaves out a module's second occurrence
            if child is not None:
                yield from _layers(child_name, child)
    elif not isinstance(module, _BatchNorm) and any(isinstance(inner, _BatchNorm) for inner in module.modules()):
        raise ValueError(f"{name} is no plain sequence of layers and has batch norm inside: it needs the whole batch")
    else:
        yield module
