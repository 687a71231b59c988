"""Builds a network from its name: one of this package, of torchvision, or a user's own function."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_type_hints

import torch
from torch import nn

from fasthebb.nets import readout
from fasthebb.nets.networks import children_of, conv6, conv10
from fasthebb.nets.softhebb import softhebb
from fasthebb.nets.triangle import triangle
from fasthebb.nets.whitening import Whitening
from fasthebb.own import OwnError, imported, own_errors
from fasthebb.readout.features import Features, first_maps
from fasthebb.readout.network import ClosedForm
from fasthebb.typed import check

NETWORKS: dict[str, Callable[..., nn.Sequential]] = {
    "conv6": conv6, "conv10": conv10, "softhebb": softhebb, "triangle": triangle,
}  # fmt: skip


def build_network(
    name: str, arguments: Mapping[str, Any], *, channels: int, size: int, classes: int,
    whitening: bool = False, layer: str | None = None, hidden: int = 0,
    closed_form: Mapping[str, Any] | None = None,
) -> nn.Module:  # fmt: skip
    """Calls the network's function, and adds what the other arguments ask for.

    Args:
        name: a key of NETWORKS, "torchvision:resnet18" or alike, or "my_package.module:function".
        arguments: keyword arguments of the function, besides channels, size and classes.
        channels, size: of the images, (channels, size, size).
        classes: number of classes.
        whitening: add a Whitening layer, not fitted yet, before the first; the network must be an nn.Sequential.
        layer: cut the network after this layer and add a new classifier; None: the whole network.
        hidden: number of units of a hidden layer in the classifier; 0: none.
        closed_form: what a classifier in closed form reads, which is not fitted yet; see `closed_form_network`.

    Raises:
        ValueError: an unknown name or argument, a module that can't be imported, or images that do not fit.
    """
    function = _function(name)
    accepted = inspect.signature(function).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values()):
        for argument in arguments:
            if argument not in accepted:
                known = [n for n in accepted if n not in ("channels", "size", "classes")]
                raise ValueError(f"unknown key model.{argument} for {name}; it accepts: {', '.join(known) or 'none'}")
    if name in NETWORKS:
        hints = get_type_hints(function)
        for argument, value in arguments.items():
            check(f"model.{argument}", value, hints[argument])
    try:
        with own_errors("model.name", name, ValueError):
            network = function(channels=channels, size=size, classes=classes, **arguments)
    except OwnError:
        raise
    except (ValueError, TypeError) as error:
        raise ValueError(f"model {name}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"model.name={name} must return a torch.nn.Module, not {type(network).__name__}")
    for tensor, value in network.state_dict().items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ValueError(f"model.name={name}: {tensor} is {value.dtype}; a network must have torch.float32")
    if whitening:
        if not isinstance(network, nn.Sequential):
            raise ValueError(f"rule.whitening: the network of model.name={name} must be an nn.Sequential")
        network = nn.Sequential(OrderedDict([("whitening", Whitening(channels, size)), *children_of(network)]))
    if layer is not None:
        network = cut_network(network, layer, channels=channels, size=size, classes=classes)
    if hidden:
        add_hidden_layer(network, hidden)
    if closed_form is not None:
        network = closed_form_network(network, channels=channels, size=size, **closed_form)
    return network


def closed_form_network(
    network: nn.Module, *, channels: int, size: int, layers: Sequence[str] | None, pool: int, root: bool, mirror: bool
) -> nn.Module:
    """The network with a classifier in closed form; see `fasthebb.readout`.

    Args:
        layers: patterns of the layers that are read; None: the first two children that give maps.

    Raises:
        ValueError: the network has no such layers, or they give no features.
    """
    try:
        features = Features(network, layers or first_maps(network, channels, size), pool, root=root)
        features.check(channels, size)
    except ValueError as error:
        shown = f"=[{','.join(layers)}]" if layers else ""
        raise ValueError(f"finetune.layers{shown}: {error}") from error
    return ClosedForm(features, mirror=mirror)


def _function(name: str) -> Callable[..., nn.Module]:
    if name in NETWORKS:
        return NETWORKS[name]
    if name.startswith("torchvision:"):
        return partial(_of_torchvision, name.removeprefix("torchvision:"))
    if ":" in name:
        return imported("model.name", name)
    ours = ", ".join(NETWORKS)
    raise ValueError(f"model.name: unknown {name!r}; use {ours}, torchvision:NAME or my_package.module:function")


def _of_torchvision(name: str, /, *, channels: int, size: int, classes: int, **options: Any) -> nn.Module:
    """An untrained classification network of torchvision; its last linear layer becomes the child `classifier`."""
    from torchvision import models  # slow to import

    if name not in models.list_models(models):
        raise ValueError(f"torchvision has no {name!r}; it has: {', '.join(models.list_models(models))}")
    network = models.get_model(name, weights=None, num_classes=classes, **options)
    last = [part for part, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not last:
        raise ValueError(f"{name} has no linear layer to be its classifier")
    classifier = network.get_submodule(last[-1])
    network.set_submodule(last[-1], nn.Identity())
    return nn.Sequential(OrderedDict([("features", network), ("classifier", classifier)]))


def cut_network(network: nn.Module, layer: str, *, channels: int, size: int, classes: int) -> nn.Module:
    """As `readout.cut_after`; the error names the setting."""
    try:
        return readout.cut_after(network, layer, channels=channels, size=size, classes=classes)
    except ValueError as error:
        raise ValueError(f"finetune.layer={layer}: {error}") from error


def add_hidden_layer(network: nn.Module, units: int) -> None:
    """As `readout.add_hidden_layer`; the error names the setting."""
    try:
        readout.add_hidden_layer(network, units)
    except ValueError as error:
        raise ValueError(f"finetune.hidden={units}: {error}") from error
