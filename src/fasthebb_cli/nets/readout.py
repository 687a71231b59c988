"""What reads a network's features: a classifier of one or two layers, after any layer of the network.

After an early layer it sees maps averaged to a small grid. Few labels are spent better there than after the last
layer: there are fewer weights to learn, and early layers keep where things are. A network is cut by the names of its
children, the last of which is called `classifier`.
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
    dropout = _dropout(children["classifier"])
    output = _output(nn.Sequential(kept), channels, size)
    pool: list[nn.Module] = []
    if output.dim() == 3:
        grid = min(GRID, output.shape[1])
        pool = [nn.AdaptiveAvgPool2d(grid), nn.Flatten()]
        output = output[:, :grid, :grid]
    kept["classifier"] = nn.Sequential(*pool, nn.Dropout(dropout), nn.Linear(output.numel(), classes))
    return nn.Sequential(kept)


def add_hidden_layer(network: nn.Module, units: int) -> None:
    """A hidden layer, in place: the last linear layer of the child `classifier` becomes two, with ReLU and its dropout.

    Raises:
        ValueError: there is none.
    """
    name, last = output_layer(network)
    dropout = nn.Dropout(_dropout(network.get_submodule("classifier")))
    classes = nn.Linear(units, last.out_features, bias=last.bias is not None)
    two = nn.Sequential(nn.Linear(last.in_features, units), nn.ReLU(), dropout, classes)
    network.set_submodule(name, two.to(last.weight.device))


def output_layer(network: nn.Module) -> tuple[str, nn.Linear]:
    """The layer that gives the scores, the last linear one of the child `classifier`, and its name.

    Raises:
        ValueError: there is none.
    """
    found = [(name, module) for name, module in network.named_modules()
             if name.split(".")[0] == "classifier" and isinstance(module, nn.Linear)]  # fmt: skip
    if not found:
        raise ValueError("the network has no linear layer in a child called classifier")
    return found[-1]


def _dropout(classifier: nn.Module) -> float:
    return next((module.p for module in classifier.modules() if isinstance(module, nn.Dropout)), 0.0)


@torch.no_grad()
def _output(features: nn.Module, channels: int, size: int) -> torch.Tensor:
    """What the features make of one empty image, without batch norm learning from it."""
    was_training = features.training
    output: torch.Tensor = features.eval()(torch.zeros(1, channels, size, size))[0]
    features.train(was_training)
    return output
