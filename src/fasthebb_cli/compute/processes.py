"""Communication between the processes of one run. With a single process every function here is the identity.

There are three process groups, as the messages of one group wait for each other:
1. sums that a process waits for (nccl between GPUs, otherwise gloo),
2. sums that are sent while the process computes,
3. decisions: stop, save, and values from the first process.

Every decision starts with the same all-reduce of three numbers. A process that failed joins it, so that all others
learn of the failure at their next decision.
"""

import atexit
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fasthebb_cli.compute.launch import launch, seconds_of
from fasthebb_cli.errors import Interrupted, RunError

T = TypeVar("T")
STEP = timedelta(minutes=30)  # time limit of a sum
PATIENCE = timedelta(days=7)  # time limit of a decision: the first process may wait for another job's pre-training
JOIN_VARIABLE = "FASTHEBB_JOIN_SECONDS"  # environment variable: time limit for all processes to start
_alone: ContextVar[bool] = ContextVar("alone", default=False)  # within what the first process makes for all
LAST_WORD = timedelta(seconds=20)  # how long a failed process waits for the others' next decision


class PeerFailed(RunError):
    """Another process of the run failed and prints its own message. All processes know it and may run other cells."""


class PeerLost(PeerFailed):
    """Another process does not answer any more: the run is over."""


class Decision(NamedTuple):
    """What all processes do next: stop, or save a checkpoint. True if any process asked for it."""

    stop: bool
    save: bool


def join() -> None:
    """Connects to the other processes of the run, unless that is done already.

    Raises:
        RunError: not all of them started in time.
    """
    own = launch()
    if own.size == 1 or dist.is_initialized():
        return
    host, port = own.address
    if host:
        variables = {"MASTER_ADDR": host, "MASTER_PORT": port, "RANK": own.rank, "WORLD_SIZE": own.size}
        os.environ.update({name: str(value) for name, value in variables.items()})
    gpus = torch.cuda.is_available()  # no test has several GPUs
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
    """Closes the connection to the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()
        _decisions.cache_clear()
        _numbers.cache_clear()
        _background.cache_clear()


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    return rank() == 0


def group() -> dist.ProcessGroup | None:
    """The process group for sums that are sent while a process computes; None with a single process."""
    return _background() if count() > 1 else None


def part_of(total: int) -> slice:
    """This process's part of `total` items. Parts are consecutive, and their lengths differ by at most 1."""
    least, more = divmod(total, count())
    start = rank() * least + min(rank(), more)
    return slice(start, start + least + (rank() < more))


def summed(value: Tensor) -> Tensor:
    """The sum over processes, in place."""
    if count() > 1:
        dist.all_reduce(value, group=_numbers())
    return value


def start_sum(value: Tensor) -> Callable[[], None]:
    """Starts the sum over processes, in place. The function returned waits for it. Needs several processes."""
    work = dist.all_reduce(value, group=_background(), async_op=True)
    assert work is not None

    def wait() -> None:
        work.wait()

    return wait


def decide(*, stop: bool = False, save: bool = False) -> Decision:
    """Agrees with all processes on what to do next: whatever any of them asks for.

    Raises:
        PeerFailed: another process failed.
    """
    if count() == 1:
        return Decision(stop, save)
    stopping, saving, failed = _exchange([stop, save, 0]).tolist()
    if failed:
        raise PeerFailed(f"process {count() - failed} of this run failed; see its message")
    return Decision(bool(stopping), bool(saving))


def from_first(make: Callable[[], T]) -> T:
    """Calls `make` in the first process and returns its value in all processes. In `make` itself, a further such call
    is the first process's own.

    Raises:
        Interrupted: in all processes, if the first is asked to stop meanwhile.
    """
    if count() == 1 or _alone.get():
        return make()
    made: list[Any] = [None]
    if is_first():
        token = _alone.set(True)
        try:
            made = [make()]
        except Interrupted as stopped:
            made = [stopped]
        finally:
            _alone.reset(token)
    decide()
    dist.broadcast_object_list(made, group=_decisions())
    if isinstance(made[0], Interrupted):
        raise made[0]
    value: T = made[0]
    return value


def gathered(value: T) -> list[T]:
    """In the first process the values of all, by rank; in the others an empty list."""
    if count() == 1:
        return [value]
    decide()
    everyone: list[T] | None = [value] * count() if is_first() else None
    dist.gather_object(value, everyone, group=_decisions())
    return everyone or []


def summands(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """For a checkpoint, of tensors whose sum over processes counts: in the first process those of all, by rank.

    Their sum would be smaller, but a run that goes on from it adds in another order, and ends in other bits.
    """
    return gathered({name: value.cpu() for name, value in state.items()})


def own_summands(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """This process's tensors of a checkpoint. After a run of more or fewer processes the first one takes the sum."""
    if len(states) == count():
        return {name: value.clone() for name, value in states[rank()].items()}
    first = {name: value * is_first() for name, value in states[0].items()}
    for state in states[1:] if is_first() else ():
        for name, value in state.items():
            first[name] = first[name] + value
    return first


def meet() -> None:
    """Waits until all processes are here."""
    decide()


def tell_failure() -> bool:
    """Tells the other processes, at their next decision, that this one failed.

    Returns:
        Whether this process prints its error: of those that failed, the one of the lowest rank does.

    Raises:
        PeerLost: the others reach no decision, as they wait for this process's sum. They fail when this process ends.
    """
    if count() == 1:
        if not launch().first:  # it failed before `join`, as the others will: let rank 0 print its error first
            time.sleep(LAST_WORD.total_seconds() / 2)
        return True
    failed = int(_exchange([0, 0, count() - rank()], LAST_WORD)[2])
    return failed == count() - rank()


def _exchange(message: list[int], patience: timedelta = PATIENCE) -> Tensor:
    """The maximum over processes of three numbers:

    stop: 1 if the process asks all to stop.
    save: 1 if it asks for a checkpoint.
    failed: world_size - rank of a failed process, otherwise 0. The maximum yields the lowest failed rank.
    """
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
    """A new group of all processes.

    Args:
        patience: the time limit of each message.
        backend: nccl or gloo; None: as in `join`.
    """
    made = dist.new_group(backend=backend, timeout=patience)
    assert isinstance(made, dist.ProcessGroup)
    return made
