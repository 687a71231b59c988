"""Learning by gradients from each process's part of a batch, and in parts that fit the memory."""

import torch
from torch import nn

from fasthebb_cli import processes
from fasthebb_cli.errors import InputError
from fasthebb_cli.hebb.parts import InParts


def share_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Gradients become sums over processes, in one buffer and in the parameters' order.

    DistributedDataParallel would send them while the backward pass still runs, but in another order after its first
    step than in it: of three processes or more a resumed run would not end in the same bits.
    """
    if processes.count() == 1:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = processes.summed(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    for gradient, total in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(total.view(gradient.shape))


def in_parts(network: nn.Module, micro_batch: int | None) -> nn.Module:
    """The network, run on so many images at a time, with the numbers of the whole batch.

    Raises:
        InputError: it can't be cut into parts.
    """
    if micro_batch is None:
        return network
    try:
        return InParts(network, micro_batch)
    except ValueError as error:
        raise InputError(f"gpu.micro_batch={micro_batch}: {error}") from error
