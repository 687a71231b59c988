"""How a module that learns by gradients is run: on each process's part of a batch, and in parts that fit the memory."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fasthebb_cli import processes
from fasthebb_cli.errors import InputError
from fasthebb_cli.hebb.parts import InParts


def parallel(module: nn.Module) -> nn.Module:
    """Gradients become means over processes. To be called again when other parameters learn."""
    if processes.count() == 1:
        return module
    return DistributedDataParallel(module)


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
