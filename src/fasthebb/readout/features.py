"""An image's features: the outputs of some layers, maps averaged to a small grid, one behind the other, rooted."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Features(nn.Module):
    """Images -> features (B, D), in the order in which the network computes the layers.

    Forward hooks read the layers. A layer that ends in batch norm is read before it, where its units are still at
    least 0: the features are standardised later anyway. A layer that the network calls several times is read at its
    first call.

    Nothing is computed after the last layer that is read. The children of a sequence after it are not kept. Any other
    network is kept whole, and an exception ends its forward pass.

    Args:
        network: shared, and in case of a sequence cut after the last child that is read or contains a layer that is.
        layers: patterns of layer names, in any order; see `chosen_layers`.
        pool: maps are averaged to at most pool x pool.
        root: each value x becomes sign(x) sqrt(|x|), as large values would outweigh all others.

    Raises:
        ValueError: a pattern matches no layer. The forward pass raises it if a layer gives no features.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], pool: int, *, root: bool) -> None:
        super().__init__()
        # with underscores: a child of the network may be called pool
        self._names, self._pool, self._root = chosen_layers(network, layers), pool, root
        self._ends_early = True
        if not _is_sequence(network):
            self.add_module("network", network)
            return
        read = {name.partition(".")[0] for name in self._names}
        # not named_children, which leaves out a module that stands twice
        children = list(network._modules.items())
        last = max(index for index, (name, _) in enumerate(children) if name in read)
        for name, child in children[: last + 1]:
            self.add_module(name, child)
        # else the last child is called as a whole, so that hooks of others on it run, too
        self._ends_early = children[last][0] not in self._names

    def forward(self, images: Tensor) -> Tensor:
        read: dict[str, Tensor] = {}
        hooks = [self._hook(name, read, len(images)) for name in self._names]
        try:
            x = images
            for child in self._modules.values():
                assert child is not None
                x = child(x)
        except _AllRead:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        if missing := [name for name in self._names if name not in read]:
            raise ValueError(f"the network never calls {missing[0]}; name a layer that it calls")
        return torch.cat(list(read.values()), dim=1)

    def _hook(self, name: str, read: dict[str, Tensor], images: int) -> torch.utils.hooks.RemovableHandle:
        """A forward hook that puts the layer's features (B, F) into `read`."""

        def keep(output: Any) -> None:
            if name in read:
                return
            if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != images:
                shown = f"shape {list(output.shape)}" if isinstance(output, Tensor) else f"type {type(output).__name__}"
                raise ValueError(f"layer {name} gives no row or map for each image, but an output of {shown}")
            read[name] = self._pooled(output)
            if self._ends_early and len(read) == len(self._names):
                raise _AllRead

        layer = self.get_submodule(name if name.partition(".")[0] in self._modules else f"network.{name}")
        if isinstance(layer, nn.Sequential) and isinstance(layer[-1], nn.modules.batchnorm._BatchNorm):
            return layer[-1].register_forward_pre_hook(lambda _, inputs: keep(inputs[0]))
        return layer.register_forward_hook(lambda _, inputs, output: keep(output))

    def _pooled(self, output: Tensor) -> Tensor:
        if output.dim() == 4:
            output = F.adaptive_avg_pool2d(output, min(self._pool, *output.shape[2:]))
        rows = output.flatten(1).float()
        # a copy: the network may change the output in place
        return rows.sign() * rows.abs().sqrt() if self._root else rows.clone()

    @torch.no_grad()
    def check(self, channels: int, size: int) -> None:
        """Tries one blank image (1, channels, size, size).

        Raises:
            ValueError: a layer gives no features.
        """
        with _evaluated(self):
            self(torch.zeros(1, channels, size, size))


class _AllRead(Exception):
    """Ends a forward pass."""


def chosen_layers(network: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Names of the layers that are read, in the order of the network's modules.

    Args:
        patterns: of names of layers and of modules inside them: `conv*`, `conv1.0`, `features.layer?`. Where a pattern
            matches a module and others inside it, the outer one is read. No pattern matches the classifier, and only
            its own name the whitening.

    Raises:
        ValueError: a pattern matches no layer.
    """
    names = [name for name, _ in network.named_modules() if name and name.split(".")[0] != "classifier"]
    chosen: set[str] = set()
    for pattern in patterns:
        matching = {name for name in names if fnmatchcase(name, pattern) and (name != "whitening" or name == pattern)}
        if not matching:
            raise ValueError(f"no layer {pattern!r}; the network has: {', '.join(_choices(network, pattern))}")
        chosen |= {name for name in matching if not matching & set(_containing(name))}
    return [name for name in names if name in chosen]


def _containing(name: str) -> Iterator[str]:
    """Names of the modules that contain the module: a and a.b of a.b.c."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts)))


def _choices(network: nn.Module, pattern: str = "") -> list[str]:
    """Names for an error message: the children, and those inside of the one that is meant or is the only one."""
    children = {name: child for name, child in network.named_children() if name not in ("whitening", "classifier")}
    inside = pattern.partition(".")[0] if len(children) > 1 else next(iter(children), "")
    inner = children[inside].named_children() if inside in children else ()
    return [*children, *(f"{inside}.{name}" for name, _ in inner)]


def _is_sequence(network: nn.Module) -> bool:
    return isinstance(network, nn.Sequential) and type(network).forward is nn.Sequential.forward


@torch.no_grad()
def first_maps(network: nn.Module, channels: int, size: int, count: int = 2) -> list[str]:
    """The names of the first children of a network whose outputs are maps, up to `count` of them.

    Raises:
        ValueError: the network is no sequence, or gives no maps.
    """
    found: list[str] = []
    x = torch.zeros(1, channels, size, size)
    with _evaluated(network):
        for name, child in network._modules.items() if _is_sequence(network) else ():
            if name == "classifier" or len(found) == count:
                break
            assert child is not None
            x = child(x)
            if not isinstance(x, Tensor):
                break
            if x.dim() == 4 and name != "whitening":
                found.append(name)
    if not found:
        choices = ", ".join(_choices(network))
        raise ValueError(f"the network has no children that give maps; name some layers of: {choices}")
    return found


@contextmanager
def _evaluated(network: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module has its own mode again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
