"""An image's features: the maps of some layers, averaged to a small grid, one behind the other, rooted."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Features(nn.Module):
    """Images -> features (B, D).

    A layer that ends in batch norm is read before it, where its units are still at least 0: the features are
    standardised later anyway.

    Args:
        network: a sequence; shared, and cut after the last child that is read.
        layers: names of its children, in any order.
        pool: maps are averaged to at most pool x pool.
        root: each value x becomes sign(x) sqrt(|x|), as large values would outweigh all others.

    Raises:
        ValueError: the network is no sequence, or has no such child.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], pool: int, *, root: bool) -> None:
        super().__init__()
        children = list(network.named_children())
        names = [name for name, _ in children if name != "classifier"]
        if not isinstance(network, nn.Sequential):
            raise ValueError(f"the layers of a {type(network).__name__} are no sequence")
        if unknown := [name for name in layers if name not in names]:
            raise ValueError(f"no layer {unknown[0]!r}; the network has: {', '.join(names)}")
        self.layers, self.pool, self.root = frozenset(layers), pool, root
        last = max(names.index(name) for name in layers)
        for name, child in children[: last + 1]:
            self.add_module(name, child)

    def forward(self, images: Tensor) -> Tensor:
        read: list[Tensor] = []
        x = images
        for name, child in self.named_children():
            if name not in self.layers:
                x = child(x)
            elif isinstance(child, nn.Sequential) and isinstance(child[-1], nn.modules.batchnorm._BatchNorm):
                # the child is called as a whole, so that hooks of others on it run, too
                hook = child[-1].register_forward_pre_hook(lambda _, inputs: read.append(self._pooled(inputs[0])))
                try:
                    x = child(x)
                finally:
                    hook.remove()
            else:
                x = child(x)
                read.append(self._pooled(x))
        return torch.cat(read, dim=1)

    def _pooled(self, output: Tensor) -> Tensor:
        if output.dim() == 4:
            output = F.adaptive_avg_pool2d(output, min(self.pool, *output.shape[2:]))
        rows = output.flatten(1).float()
        return rows.sign() * rows.abs().sqrt() if self.root else rows.clone()


@torch.no_grad()
def first_maps(network: nn.Module, channels: int, size: int, count: int = 2) -> list[str]:
    """The names of the first children of a network whose outputs are maps, up to `count` of them.

    Raises:
        ValueError: the network is no sequence, or gives no maps.
    """
    found: list[str] = []
    x = torch.zeros(1, channels, size, size)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    for name, child in network.named_children() if isinstance(network, nn.Sequential) else ():
        if name == "classifier" or len(found) == count:
            break
        x = child(x)
        if x.dim() == 4 and name != "whitening":
            found.append(name)
    for module, training in modes:
        module.training = training
    if not found:
        raise ValueError(f"a {type(network).__name__} has no children that give maps; name layers")
    return found
