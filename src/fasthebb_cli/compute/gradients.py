"""The gradients of one batch, of which each process has a part: a forward and a backward pass, replayed on a GPU as one
CUDA graph, or in micro-batches that fit the memory.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fasthebb.micro_batch import InMicroBatches
from fasthebb.replay import NotRecordable, Replay, Tensors
from fasthebb_cli.compute import processes
from fasthebb_cli.errors import InputError, RunError


@contextmanager
def recording_told() -> Iterator[None]:
    """Around what may be recorded, for the message when it can't be.

    Raises:
        RunError: that.
    """
    try:
        yield
    except NotRecordable as error:
        raise RunError(f"a step of this network can't be one CUDA graph; set gpu.graph=false ({error})") from error


class Backprop:
    """Puts the gradients of a loss into the parameters of an optimizer; its step is for the caller to make.

    Args:
        losses: given a batch's tensors, the loss to go down, a mean over this process's images, and whatever else is
            wanted of the pass.
        replay: see `Replay`.
    """

    def __init__(self, losses: Callable[..., Sequence[Tensor]], optimizer: Optimizer, *, replay: bool) -> None:
        self.losses, self.optimizer = losses, optimizer
        self.replay = Replay(self._passes) if replay else None
        self.share = 1.0

    def __call__(self, *batch: Tensor, share: float, key: Hashable = None) -> list[Tensor]:
        """What `losses` gives, detached.

        Args:
            share: this process's part of the batch's images.
            key: what else the passes depend on, and changes from step to step: which layers learn, or in which mode.

        Raises:
            RunError: a replayed pass that can't be recorded.
        """
        self.share = share
        with recording_told():
            results = self._passes(*batch) if self.replay is None else self.replay(*batch, key=(key, share))
        parameters = self._parameters()
        for parameter, gradient in zip(parameters, results[-len(parameters) :], strict=True):
            parameter.grad = gradient
        return [value for value in results[: -len(parameters)] if value is not None]

    def finish(self) -> None:
        """Lets go of the memory that recordings hold."""
        self.replay = None

    def _passes(self, *batch: Tensor) -> Tensors:
        self.optimizer.zero_grad(set_to_none=True)
        values = self.losses(*batch)
        with summed_gradients(self.optimizer):
            (values[0] * self.share).backward()
        return [*(value.detach() for value in values), *(parameter.grad for parameter in self._parameters())]

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


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
    total = gradient.clone(memory_format=torch.contiguous_format)  # the rest of the backward pass may share its memory
    wait = processes.start_sum(total)

    def receive() -> None:
        wait()
        gradient.copy_(total)

    return receive


def in_micro_batches(network: nn.Module, micro_batch: int | None) -> nn.Module:
    """The network, run on so many images at a time, with the numbers of the whole batch.

    Raises:
        InputError: it can't run on a part of a batch at a time.
    """
    if micro_batch is None:
        return network
    try:
        return InMicroBatches(network, micro_batch)
    except ValueError as error:
        raise InputError(f"gpu.micro_batch={micro_batch}: {error}") from error
