"""Sums over processes, each of which observes a part of every batch. The library's only use of torch.distributed.

Numerators, denominators and moments are sums over patches, so the sum over processes is that of the whole batch.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from fasthebb.engine import Sums
from fasthebb.responses import Moments


def start_sum(sums: Sums, group: dist.ProcessGroup) -> Callable[[], Sums]:
    """Starts to add up the sums of all processes, in one flat buffer.

    Returns:
        A function that waits for the total and returns it, in the memory of `sums`.
    """
    flat = torch.cat([_inputs_last(sums.numerator).reshape(-1), sums.denominator.reshape(-1)])
    work = dist.all_reduce(flat, group=group, async_op=True)
    assert work is not None

    def receive() -> Sums:
        work.wait()
        numerator, denominator = flat.split([sums.numerator.numel(), sums.denominator.numel()])
        ordered = _inputs_last(sums.numerator)
        ordered.copy_(numerator.view_as(ordered))
        sums.denominator = denominator.view_as(sums.denominator)
        return sums

    return receive


def moments_of(y_NGK: Tensor, group: dist.ProcessGroup) -> Moments:
    """Moments of a batch's responses over all processes; a process may have no patch, N = 0."""
    count = torch.full_like(y_NGK[:1].sum(0), len(y_NGK))
    sums = torch.stack([count, y_NGK.sum(0), y_NGK.square().sum(0)])
    dist.all_reduce(sums, group=group)
    return Moments.from_means(sums[1] / sums[0], sums[2] / sums[0])


def any_(flags: Tensor, group: dist.ProcessGroup) -> None:
    """A boolean tensor becomes true where it is true in any process; in place."""
    total = flags.int()
    dist.all_reduce(total, dist.ReduceOp.MAX, group=group)
    flags.copy_(total)


def _inputs_last(weight: Tensor) -> Tensor:
    """A view in which channels_last memory is contiguous; the same order in every process, whatever its memory."""
    return weight.movedim(1, -1) if weight.dim() == 4 else weight
