"""What reads a network's features: a classifier of one or two layers, after any layer of the network.

After an early layer it sees maps averaged to a small grid. Few labels are spent better there than after the last
layer: there are fewer weights to learn, and early layers keep where things are. A network is cut after a child, the
last of which is called `classifier`, or after any module in one, where torch.fx can follow what leads there.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.fx.proxy import TraceError

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
    child, _, inner = layer.partition(".")
    if child not in names or inner not in dict(children[child].named_modules()):
        inside = f", and in {child}: {', '.join(_names(children[child], child))}" if child in names else ""
        raise ValueError(f"no layer {layer!r}; the network has: {', '.join(names)}{inside}")
    kept = OrderedDict(list(children.items())[: list(children).index(child) + 1])
    if inner:
        kept[child] = UpTo(children[child], inner)
    dropout = _dropout(children["classifier"])
    output = _output(nn.Sequential(kept), channels, size)
    pool: list[nn.Module] = []
    if output.dim() == 3:
        grid = min(GRID, output.shape[1])
        pool = [nn.AdaptiveAvgPool2d(grid), nn.Flatten()]
        output = output[:, :grid, :grid]
    elif output.dim() > 1:  # a row for each part of the image
        pool = [nn.Flatten()]
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


class UpTo(nn.Module):
    """What of a network leads to one of its modules, shared with it.

    Raises:
        ValueError: what it computes depends on its input's values, which torch.fx can't follow.
    """

    def __init__(self, network: nn.Module, layer: str) -> None:
        from torchvision.models.feature_extraction import create_feature_extractor  # slow to import

        super().__init__()
        leaves = {type(module) for module in network.modules() if not any(module.children())}  # as batch norm of ours
        try:
            self.part = create_feature_extractor(network, {layer: layer}, tracer_kwargs={"leaf_modules": [*leaves]})
        except (TraceError, TypeError, ValueError) as error:
            raise ValueError(f"a {type(network).__name__} can't be cut inside ({error})") from error
        self.layer = layer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.part(images)[self.layer]
        return output


def _names(module: nn.Module, prefix: str) -> list[str]:
    return [f"{prefix}.{name}" for name, _ in module.named_children()]


def _dropout(classifier: nn.Module) -> float:
    return next((module.p for module in classifier.modules() if isinstance(module, nn.Dropout)), 0.0)


@torch.no_grad()
def _output(features: nn.Module, channels: int, size: int) -> torch.Tensor:
    """What the features make of one empty image, without batch norm learning from it."""
    was_training = features.training
    output: torch.Tensor = features.eval()(torch.zeros(1, channels, size, size))[0]
    features.train(was_training)
    return output
