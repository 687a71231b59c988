"""A network cut after one of its layers: the classifier reads that layer's output, averaged to a small grid.

Few labels are spent better there than after the last layer: there are fewer weights to learn, and early layers keep
where things are. A network is cut by the names of its children, the last of which is called `classifier`.
"""

from collections import OrderedDict

import torch
from torch import nn

GRID = 4  # the output's height and width as the classifier sees it, at most


def cut_after(network: nn.Module, layer: str, *, channels: int, size: int, classes: int) -> nn.Sequential:
    """The children of a network up to `layer`, shared with it, and a new linear classifier.

    Args:
        network: an nn.Sequential whose last child is called `classifier`.
        channels, size: of its images (B, channels, size, size).

    Raises:
        ValueError: no such layer, or a network that is no such sequence.
    """
    children = dict(network.named_children())
    if not isinstance(network, nn.Sequential) or next(reversed(children), None) != "classifier":
        raise ValueError("only an nn.Sequential that ends in a child called classifier can be cut after a layer")
    names = [name for name in children if name not in ("whitening", "classifier")]
    if layer not in names:
        raise ValueError(f"no layer {layer!r}; the network has: {', '.join(names)}")
    kept = OrderedDict(list(children.items())[: list(children).index(layer) + 1])
    dropout = next((m.p for m in children["classifier"].modules() if isinstance(m, nn.Dropout)), 0.0)
    output = _output(nn.Sequential(kept), channels, size)
    pool: list[nn.Module] = []
    if output.dim() == 3:
        grid = min(GRID, output.shape[1])
        pool = [nn.AdaptiveAvgPool2d(grid), nn.Flatten()]
        output = output[:, :grid, :grid]
    kept["classifier"] = nn.Sequential(*pool, nn.Dropout(dropout), nn.Linear(output.numel(), classes))
    return nn.Sequential(kept)


@torch.no_grad()
def _output(features: nn.Module, channels: int, size: int) -> torch.Tensor:
    """What the features make of one empty image, without batch norm learning from it."""
    was_training = features.training
    output: torch.Tensor = features.eval()(torch.zeros(1, channels, size, size))[0]
    features.train(was_training)
    return output
