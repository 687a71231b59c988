"""Runs a network on a large batch in parts, to save memory: the numbers are those of the whole batch.

Each run of layers between two that must see all images (batch norm) works on one part after the other. Where gradients
are wanted, what lies within such a run is computed again on the way back instead of being kept.
"""

from collections.abc import Callable, Collection, Iterator
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Begin = Callable[[int, int], None]


class InParts(nn.Module):
    """A network that takes its batches in parts.

    Args:
        size: images in a part, at least 1.

    Raises:
        ValueError: batch norm lies inside of something that is not a plain nn.Sequential.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size
        layers(network)

    def forward(self, images: Tensor) -> Tensor:
        return in_parts(layers(self.network), images, self.size)


def layers(network: nn.Module) -> list[nn.Module]:
    """What a network does, one after the other.

    Raises:
        ValueError: as InParts.
    """
    return list(_layers("the network", network))


def in_parts(
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
        begin: called before each part with its first image and the one after its last.
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
        for part in x.split(size):
            begin(start, start + len(part))
            start += len(part)
            outputs.append(checkpoint(steps, part, use_reentrant=False) if torch.is_grad_enabled() else steps(part))
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
