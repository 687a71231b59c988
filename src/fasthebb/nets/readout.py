"""Cuts a network after a layer, and gives it a classifier of one or two layers that reads this layer's features.

After a convolution, the classifier reads maps that are averaged to a small grid. With few labels an early layer is the
better choice: its classifier has fewer weights, and its maps still say where things are.
A network can be cut after one of its children, or after a module inside one, if torch.fx can trace the way to it.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.fx.proxy import TraceError

from fasthebb.nets.networks import children_of

GRID = 4  # largest height and width of the maps that the classifier reads


def cut_after(network: nn.Module, layer: str, *, channels: int, size: int, classes: int) -> nn.Sequential:
    """The children of a network up to `layer`, shared with the network, and a new linear classifier.

    Args:
        network: an nn.Sequential whose last child is called `classifier`.
        layer: name of a child, or of a module inside one.
        channels, size: of the images, (B, channels, size, size).
        classes: number of classes.

    Raises:
        ValueError: there is no such layer, or the network is no such sequence.
    """
    children = dict(children_of(network))
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
    elif output.dim() > 1:  # a vision transformer: one row for each part of the image
        pool = [nn.Flatten()]
    kept["classifier"] = nn.Sequential(*pool, nn.Dropout(dropout), nn.Linear(output.numel(), classes))
    return nn.Sequential(kept)


def add_hidden_layer(network: nn.Module, units: int) -> None:
    """Replaces the last linear layer of the child `classifier` by two, with ReLU and dropout between them; in place.

    Args:
        units: of the hidden layer, >= 1.

    Raises:
        ValueError: the network has no such layer.
    """
    name, last = output_layer(network)
    dropout = nn.Dropout(_dropout(network.get_submodule("classifier")))
    classes = nn.Linear(units, last.out_features, bias=last.bias is not None)
    two = nn.Sequential(nn.Linear(last.in_features, units), nn.ReLU(), dropout, classes)
    network.set_submodule(name, two.to(last.weight.device))


def output_layer(network: nn.Module) -> tuple[str, nn.Linear]:
    """The name and the layer that computes the scores: the last linear layer in the child `classifier`.

    Raises:
        ValueError: the network has no such layer.
    """
    found = [(name, module) for name, module in network.named_modules()
             if name.split(".")[0] == "classifier" and isinstance(module, nn.Linear)]  # fmt: skip
    if not found:
        raise ValueError("the network has no linear layer in a child called classifier")
    return found[-1]


class UpTo(nn.Module):
    """The part of a network that leads to one of its modules, shared with the network.

    Raises:
        ValueError: torch.fx can't trace the network, as its Python code depends on a tensor's values.
    """

    def __init__(self, network: nn.Module, layer: str) -> None:
        from torchvision.models.feature_extraction import create_feature_extractor  # slow to import

        super().__init__()
        leaves = {
            type(module) for module in network.modules() if not any(module.children())
        }  # RelativeBatchNorm2d, too
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
    """The features of one image of zeros; batch norm's statistics stay as they are."""
    was_training = features.training
    output: torch.Tensor = features.eval()(torch.zeros(1, channels, size, size))[0]
    features.train(was_training)
    return output
