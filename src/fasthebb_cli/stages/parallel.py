"""Learning by gradients from each process's part of a batch, and in parts that fit the memory."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fasthebb.micro_batch import InMicroBatches
from fasthebb_cli import processes
from fasthebb_cli.errors import InputError


@contextmanager
def summed_gradients(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Gradients of the backward pass within become sums over processes, while the pass goes on.

    DistributedDataParallel puts them into other buffers after its first step than in it: of three processes or more a
    resumed run would not end in the same bits. Here each parameter's travel by themselves, the last parameter's first.
    """
    if processes.count() == 1:
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    waiting = deque(parameter for parameter in reversed(parameters) if parameter.requires_grad)
    arrived: set[Tensor] = set()
    sent: list[Callable[[], None]] = []

    def arrive(parameter: Tensor) -> None:
        arrived.add(parameter)
        while waiting and waiting[0] in arrived:  # in the same order everywhere
            sent.append(_send(waiting.popleft()))

    hooks = [parameter.register_post_accumulate_grad_hook(arrive) for parameter in waiting]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    sent += [_send(parameter) for parameter in waiting if parameter.grad is not None]
    for receive in sent:
        receive()


def _send(parameter: Tensor) -> Callable[[], None]:
    """Starts to sum a gradient over processes; what it returns waits for the sum."""
    gradient = parameter.grad
    assert gradient is not None
    total = gradient.clone(memory_format=torch.contiguous_format)  # what goes on on the way back may share its memory
    wait = processes.start_sum(total)

    def receive() -> None:
        wait()
        gradient.copy_(total)

    return receive


def in_parts(network: nn.Module, micro_batch: int | None) -> nn.Module:
    """The network, run on so many images at a time, with the numbers of the whole batch.

    Raises:
        InputError: it can't be cut into parts.
    """
    if micro_batch is None:
        return network
    try:
        return InMicroBatches(network, micro_batch)
    except ValueError as error:
        raise InputError(f"gpu.micro_batch={micro_batch}: {error}") from error
