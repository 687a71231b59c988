"""The gradients of one batch, of which each process has a part: one forward and one backward pass.

On a GPU both passes can be one CUDA graph. A network that runs in micro-batches needs less memory.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fasthebb.micro_batch import InMicroBatches
from fasthebb.replay import Replay, Tensors
from fasthebb_cli.compute import processes
from fasthebb_cli.compute.graphs import graph_errors
from fasthebb_cli.errors import InputError


class Backprop:
    """Computes the gradients of a loss and puts them into the optimizer's parameters. The caller makes the step.

    Args:
        losses: from the tensors of a batch to the loss, a mean over this process's images, and further values.
        replay: record the passes as a CUDA graph and replay it, see `Replay`.
    """

    def __init__(self, losses: Callable[..., Sequence[Tensor]], optimizer: Optimizer, *, replay: bool) -> None:
        self.losses, self.optimizer = losses, optimizer
        self.replay = Replay(self._passes) if replay else None
        self.share = 1.0

    def __call__(self, *batch: Tensor, share: float, key: Hashable = None) -> list[Tensor]:
        """The values of `losses`, detached.

        Args:
            share: this process's images / images of the whole batch.
            key: whatever else the passes depend on and changes between steps: which layers learn, or a mode.

        Raises:
            RunError: the passes are to be replayed and can't be recorded.
        """
        self.share = share
        with graph_errors():
            values = self._passes(*batch) if self.replay is None else self.replay(*batch, key=(key, share))
        parameters = self._parameters()
        for parameter, gradient in zip(parameters, values[-len(parameters) :], strict=True):
            parameter.grad = gradient
        return [value for value in values[: -len(parameters)] if value is not None]

    def finish(self) -> None:
        """Frees the recordings' memory."""
        self.replay = None

    def _passes(self, *batch: Tensor) -> Tensors:
        """The values of `losses`, then the gradient of each parameter."""
        self.optimizer.zero_grad(set_to_none=True)
        values = self.losses(*batch)
        with summed_gradients(self.optimizer):
            (values[0] * self.share).backward()
        return [*(value.detach() for value in values), *(parameter.grad for parameter in self._parameters())]

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


@contextmanager
def summed_gradients(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Sums the gradients of the backward pass in here over processes, while that pass goes on.

    Each parameter's gradient is sent as soon as it is complete, the last parameter's first. DistributedDataParallel
    sends several together and groups them differently after its first step: with three processes or more a resumed run
    would end in other bits.
    """
    if processes.count() == 1:
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    waiting = deque(parameter for parameter in reversed(parameters) if parameter.requires_grad)
    complete: set[Tensor] = set()
    sums: list[Callable[[], None]] = []

    def on_gradient(parameter: Tensor) -> None:
        complete.add(parameter)
        while waiting and waiting[0] in complete:  # all processes must send in the same order
            sums.append(_start_sum(waiting.popleft()))

    hooks = [parameter.register_post_accumulate_grad_hook(on_gradient) for parameter in waiting]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    sums += [_start_sum(parameter) for parameter in waiting if parameter.grad is not None]
    for finish in sums:
        finish()


def _start_sum(parameter: Tensor) -> Callable[[], None]:
    """Starts to sum a parameter's gradient over processes. The function returned waits for the sum and stores it."""
    gradient = parameter.grad
    assert gradient is not None
    total = gradient.clone(memory_format=torch.contiguous_format)  # the rest of the backward pass may share its memory
    wait = processes.start_sum(total)

    def finish() -> None:
        wait()
        gradient.copy_(total)

    return finish


def micro_batched(network: nn.Module, size: int | None) -> nn.Module:
    """The network, run on `size` images at a time with the numbers of the whole batch; None: the network itself.

    Raises:
        InputError: it has batch norm where a micro-batch can't be split off.
    """
    if size is None:
        return network
    try:
        return InMicroBatches(network, size)
    except ValueError as error:
        raise InputError(f"gpu.micro_batch={size}: {error}") from error
