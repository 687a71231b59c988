"""What the processes of one run tell each other. Alone, every function here is the identity.

Numbers that a process waits for travel in one group (nccl between GPUs, gloo otherwise); those that travel while it
computes in another, since a group keeps their order and a short sum would wait behind a long one; decisions in a third.
Every decision starts with the same short exchange, so that a process that failed meets the others there, wherever they
are.
"""

import atexit
import os
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fasthebb_cli.compute.launch import launch, seconds_of
from fasthebb_cli.errors import Interrupted, RunError

T = TypeVar("T")
STEP = timedelta(minutes=30)  # that processes wait for another's numbers
PATIENCE = timedelta(days=7)  # of those that wait for the first, which may wait for another job's pre-training
JOIN_VARIABLE = "FASTHEBB_JOIN_SECONDS"  # that processes wait for each other at the start
LAST_WORD = timedelta(seconds=20)  # that a failed process waits for the others to hear of it


class PeerFailed(RunError):
    """Another process of the run failed, and says so itself; all know it, and may go on with something else."""


class PeerLost(PeerFailed):
    """Another process doesn't answer any more: the run is over."""


class Decision(NamedTuple):
    """What all processes do next: stop here, or save a checkpoint; true for all if for any."""

    stop: bool
    save: bool


def join() -> None:
    """Meets the other processes, once.

    Raises:
        RunError: they don't come.
    """
    own = launch()
    if own.size == 1 or dist.is_initialized():
        return
    host, port = own.address
    if host:
        told = {"MASTER_ADDR": host, "MASTER_PORT": port, "RANK": own.rank, "WORLD_SIZE": own.size}
        os.environ.update({name: str(value) for name, value in told.items()})
    gpus = torch.cuda.is_available()  # the branch that no test here can run
    patience = seconds_of(JOIN_VARIABLE, 60)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=timedelta(seconds=patience))
    except RuntimeError as error:
        what = str(error).partition("\n")[0]
        raise RunError(
            f"not all {own.size} processes of this run came within {patience:g} s ({JOIN_VARIABLE}): {what}"
        ) from error
    _decisions()
    _numbers()
    _background()
    atexit.register(leave)


def leave() -> None:
    """Ends the connection, so that nobody waits for it."""
    if dist.is_initialized():
        dist.destroy_process_group()
        _decisions.cache_clear()
        _numbers.cache_clear()
        _background.cache_clear()


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    return rank() == 0


def group() -> dist.ProcessGroup | None:
    """All processes, for sums that travel while they compute; None if there is one."""
    return _background() if count() > 1 else None


def part_of(total: int) -> slice:
    """This process's part of so many things in a row; parts differ in length by one at most."""
    least, more = divmod(total, count())
    start = rank() * least + min(rank(), more)
    return slice(start, start + least + (rank() < more))


def summed(value: Tensor) -> Tensor:
    """The sum over processes, in the same memory."""
    if count() > 1:
        dist.all_reduce(value, group=_numbers())
    return value


def start_sum(value: Tensor) -> Callable[[], None]:
    """Starts the sum over processes, in the same memory; what it returns waits for it. There are several processes."""
    work = dist.all_reduce(value, group=_background(), async_op=True)
    assert work is not None

    def wait() -> None:
        work.wait()

    return wait


def decide(*, stop: bool = False, save: bool = False) -> Decision:
    """What any process asks for, all do.

    Raises:
        PeerFailed: another one failed.
    """
    if count() == 1:
        return Decision(stop, save)
    stopping, saving, failed = _exchange([stop, save, 0]).tolist()
    if failed:
        raise PeerFailed(f"process {count() - failed} of this run failed; see its message")
    return Decision(bool(stopping), bool(saving))


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, for all of them.

    Raises:
        Interrupted: in all, if the first is stopped while it makes it.
    """
    if count() == 1:
        return make()
    made: list[Any] = [None]
    if is_first():
        try:
            made = [make()]
        except Interrupted as stopped:
            made = [stopped]
    decide()
    dist.broadcast_object_list(made, group=_decisions())
    if isinstance(made[0], Interrupted):
        raise made[0]
    value: T = made[0]
    return value


def gathered(value: T) -> list[T]:
    """Everyone's value, in order, for the first process; the others get an empty list."""
    if count() == 1:
        return [value]
    decide()
    everyone: list[T] | None = [value] * count() if is_first() else None
    dist.gather_object(value, everyone, group=_decisions())
    return everyone or []


def meet() -> None:
    """Nobody goes on before all are here."""
    decide()


def tell_failure() -> bool:
    """Tells the others, wherever they are, that this process failed.

    Returns:
        Whether it is for this process to say why: the first of those that failed does.

    Raises:
        PeerLost: nobody listens, because they wait for numbers that will not come. They notice that this process ends.
    """
    if count() == 1:
        if not launch().first:  # it failed before it met the others, and so will they; the first one speaks, if it can
            time.sleep(LAST_WORD.total_seconds() / 2)
        return True
    failed = int(_exchange([0, 0, count() - rank()], LAST_WORD)[2])
    return failed == count() - rank()


def _exchange(message: list[int], patience: timedelta = PATIENCE) -> Tensor:
    """The largest of everyone's three numbers: stop, save, and who failed, as the size of the run minus its rank."""
    tensor = torch.tensor(message, dtype=torch.int64)
    work = dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_decisions(), async_op=True)
    assert work is not None
    try:
        work.wait(patience)
    except RuntimeError as error:
        raise PeerLost("another process of this run ended without a word; see the messages before this") from error
    return tensor


@cache
def _numbers() -> dist.ProcessGroup:
    return _all(STEP)


@cache
def _background() -> dist.ProcessGroup:
    return _all(STEP)


@cache
def _decisions() -> dist.ProcessGroup:
    return _all(PATIENCE, "gloo")


def _all(patience: timedelta, backend: str | None = None) -> dist.ProcessGroup:
    """A new group of all processes, that wait so long for each other's numbers."""
    made = dist.new_group(backend=backend, timeout=patience)
    assert isinstance(made, dist.ProcessGroup)
    return made
