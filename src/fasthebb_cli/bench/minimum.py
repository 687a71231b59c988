"""The least work of a Hebbian step: each learning layer's forward product and weight-gradient product, in float32."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasthebb_cli.bench.measure import Work
from fasthebb_cli.bench.subject import Subject


def minimum(subject: Subject) -> Work:
    """The two products of each learning layer on its own input, and nothing else."""
    parts = [layer_minimum(layer, x) for layer, x in layer_inputs(subject).values()]

    def work() -> None:
        for part in parts:
            part()

    return subject.repeated(work)


def layer_minimum(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Work:
    """The forward product of a layer on x, and the gradient of its weight."""
    weight = layer.weight.detach()
    with torch.no_grad():
        gate = torch.randn_like(layer(x))

    @torch.no_grad()
    def work() -> None:
        if isinstance(layer, nn.Linear):
            F.linear(x, weight)
            _ = gate.flatten(0, -2).T @ x.flatten(0, -2)
            return
        F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        padding = [0, 0] if isinstance(layer.padding, str) else list(layer.padding)
        torch.ops.aten.convolution_backward(
            gate, x, weight, None, layer.stride, padding, layer.dilation, False, [0, 0], layer.groups,
            [False, True, False],
        )  # fmt: skip

    return work


@torch.no_grad()
def layer_inputs(subject: Subject) -> dict[str, tuple[nn.Conv2d | nn.Linear, Tensor]]:
    """Each learning layer of a fresh network, with its input on the batch."""
    network = subject.network()
    learner = subject.learner(network)
    layers = {layer.name: layer.module for layer in learner.layers}
    learner.finish()
    seen: dict[str, tuple[nn.Conv2d | nn.Linear, Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda m, x, name=name: seen.__setitem__(name, (m, x[0].detach())))
        for name, module in layers.items()
    ]
    network(subject.images)
    for hook in hooks:
        hook.remove()
    return seen
