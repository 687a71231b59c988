"""Batch norm over a batch of which each process has a part: sums are added up, so all normalise alike.

torch's own SyncBatchNorm refuses the CPU. Knows the processes, and nothing of what the network is for.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fasthebb_cli.compute import processes

# each kind of batch norm with SharedBatchNorm.forward in place of torch's; a subclass may still add to it
_KINDS: dict[type, type] = {}


def share_batch_norm(network: nn.Module) -> nn.Module:
    """Every batch norm of the network, whatever its kind, is from now on one over all processes."""
    if processes.count() > 1:
        for module in network.modules():
            if isinstance(module, _BatchNorm) and not isinstance(module, SharedBatchNorm):
                kind = type(module)
                module.__class__ = _KINDS.setdefault(kind, type(f"Shared{kind.__name__}", (kind, SharedBatchNorm), {}))
    return network


class SharedBatchNorm(_BatchNorm):
    """The same numbers as batch norm on the whole batch, to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            usual: Tensor = super().forward(x)
            return usual
        shape = [1, -1] + [1] * (x.dim() - 2)
        others = [0, *range(2, x.dim())]
        values = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        count = processes.summed(values.new_tensor([float(x.numel() // x.shape[1])]))
        mean = _Summed.apply(values.sum(others)) / count
        centred = values - mean.view(shape)
        variance = _Summed.apply(centred.square().sum(others)) / count  # in two passes: E[x^2] - mean^2 would cancel
        if self.training and self.running_mean is not None and self.running_var is not None:
            self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp_min(1))
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        output: Tensor = centred * scale.view(shape)
        if self.bias is not None:
            output = output + self.bias.view(shape)
        return output.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), step)
        self.running_var.lerp_(variance.to(self.running_var), step)


class _Summed(torch.autograd.Function):
    """The sum over processes; each gets the gradient of what all make of it."""

    @staticmethod
    def forward(context: object, value: Tensor) -> Tensor:
        return processes.summed(value.clone())

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return processes.summed(gradient.clone())
