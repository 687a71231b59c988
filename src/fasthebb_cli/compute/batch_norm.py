"""Batch norm over all processes, each of which has a part of the batch: all normalise by the same mean and variance.

torch's own SyncBatchNorm refuses the CPU. Knows the processes, and nothing of what the network is for.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fasthebb.nets.networks import RelativeBatchNorm1d, RelativeBatchNorm2d, relative
from fasthebb_cli.compute import processes
from fasthebb_cli.errors import InputError


def share_batch_norm(network: nn.Module) -> nn.Module:
    """Replaces every batch norm of the network by a shared one with the same parameters. A single process keeps all.

    Returns:
        The same network, or what replaces it if it is a batch norm itself.

    Raises:
        InputError: a batch norm has a forward pass of its own, which the shared one would leave out.
    """
    if processes.count() == 1:
        return network
    if isinstance(network, _BatchNorm):
        return _shared(network)
    made: dict[nn.Module, nn.Module] = {}  # a module may stand in several places
    for module in list(network.modules()):
        for name, child in list(module._modules.items()):  # named_children leaves out one that stands twice
            if isinstance(child, _BatchNorm):
                if child not in made:
                    made[child] = _shared(child)
                setattr(module, name, made[child])
    return network


class SharedBatchNorm(_BatchNorm):
    """The numbers of batch norm on the whole batch, to rounding.

        y = (x - mean) / sqrt(var + eps) * weight + bias,   mean = sum x / n,   var = sum (x - mean)^2 / n

    The sums and n are over the images and places of all processes.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        shape = [1, -1] + [1] * (x.dim() - 2)
        others = [0, *range(2, x.dim())]
        values = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        count = processes.summed(values.new_tensor([float(x.numel() // x.shape[1])]))
        mean = _Summed.apply(values.sum(others)) / count
        centred = values - mean.view(shape)
        variance = _Summed.apply(centred.square().sum(others)) / count  # in two passes: E[x^2] - mean^2 would cancel
        if self.training and self.running_mean is not None and self.running_var is not None:
            self._update_running(mean.detach(), variance.detach() * count / (count - 1).clamp_min(1))
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        output: Tensor = centred * scale.view(shape)
        if self.bias is not None:
            output = output + self.bias.view(shape)
        return output.to(x.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), step)
        self.running_var.lerp_(variance.to(self.running_var), step)


class SharedRelativeBatchNorm(SharedBatchNorm):
    """The same for RelativeBatchNorm1d and RelativeBatchNorm2d."""

    def forward(self, x: Tensor) -> Tensor:
        return relative(super().forward(x), self.running_var)


def _shared(norm: _BatchNorm) -> _BatchNorm:
    """A shared batch norm with the parameters, buffers and mode of the given one."""
    kind: type[_BatchNorm]
    if isinstance(norm, SharedBatchNorm):
        return norm
    if isinstance(norm, RelativeBatchNorm1d | RelativeBatchNorm2d):
        kind = SharedRelativeBatchNorm
    elif type(norm).forward is _BatchNorm.forward:
        kind = SharedBatchNorm
    else:
        raise InputError(
            f"model: {type(norm).__name__} is a batch norm with a forward pass of its own; use one process, "
            "or a batch norm of torch or of fasthebb"
        )
    made = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for name, value in [*norm._parameters.items(), *norm._buffers.items()]:
        setattr(made, name, value)
    return made.train(norm.training)


class _Summed(torch.autograd.Function):
    """The sum over processes. Its gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(context: object, value: Tensor) -> Tensor:
        return processes.summed(value.clone())

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return processes.summed(gradient.clone())
