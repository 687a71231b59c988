"""Measuring: alternating repeats in one process, counted work, and peak memory. Any function can be measured."""

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], object]


def alternating_ms(contenders: Mapping[str, Work], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of each contender in each repeat; contenders take turns.

    The first round does not count. On a GPU the first ten don't: there kernels are chosen and graphs are recorded.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    before = 1 if device.type == "cpu" else 10
    for repeat in range(repeats + before):
        for name, work in contenders.items():
            began = time.perf_counter()
            work()
            if device.type != "cpu":
                torch.accelerator.synchronize()
            if repeat >= before:
                taken[name].append(1000 * (time.perf_counter() - began))
    return taken


def median_ms(contenders: Mapping[str, Work], repeats: int, device: torch.device) -> dict[str, float]:
    """The medians of `alternating_ms`."""
    times = alternating_ms(contenders, repeats, device)
    return {name: statistics.median(values) for name, values in times.items()}


def paired_quartiles(times: Sequence[float], others: Sequence[float]) -> list[float]:
    """Quartiles and median of the ratios of times in the same repeat, which share the noise of the machine."""
    ratios = [time / other for time, other in zip(times, others, strict=True)]
    return statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3


def flops(work: Work) -> int:
    """Multiplications and additions of the matrix products in the work, counted by torch."""
    counter = FlopCounterMode(display=False, custom_mapping=IN_PLACE)
    with counter:
        work()
    return int(counter.get_total_flops())


def _addmm(_: Any, a_shape: list[int], b_shape: list[int], *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(a_shape) * b_shape[-1]


# torch's counter knows these products, but not their in-place forms
IN_PLACE = {torch.ops.aten.addmm_: _addmm, torch.ops.aten.baddbmm_: _addmm}


def peak_bytes(work: Work, device: torch.device) -> int:
    """The most memory held at a time, beyond that held before. It is of a first run, so that what is kept counts."""
    gc.collect()  # else memory of earlier measurements would be freed during this one
    if device.type == "cuda":  # only a GPU runs this line
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device) - before)
    # without acc_events, torch 2.11 warns of cycles although there are none
    with _silenced(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        work()
    held = most = 0
    results = profiler.profiler.kineto_results if profiler.profiler is not None else None
    assert results is not None
    for event in sorted(results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def fitted_exponent(times: Mapping[float, float]) -> float:
    """b of time = a x point^b, by least squares on logarithms."""
    return statistics.linear_regression([math.log(x) for x in times], [math.log(y) for y in times.values()]).slope


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4 .. up to `most`."""
    return [1 << power for power in range(most.bit_length())]


class Neighbours:
    """How busy other processes keep the machine, from the construction on."""

    def __init__(self) -> None:
        self.began, self.busy, self.own = time.perf_counter(), _busy_seconds(), _own_seconds()

    def cores(self) -> float | None:
        """How many cores other processes used on average, a hypervisor included; None where /proc/stat is missing."""
        busy = _busy_seconds()
        if busy is None or self.busy is None:
            return None
        others = busy - self.busy - (_own_seconds() - self.own)
        return max(0.0, others / (time.perf_counter() - self.began))


def _busy_seconds() -> float | None:
    """Seconds that all cores have worked since the machine started: user, nice, system, interrupts, stolen."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        user, nice, system, _, _, irq, softirq, stolen = map(int, fields[1:9])
    except (OSError, ValueError):  # there is none, or it has other fields
        return None
    return (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    return sum(os.times()[:4])  # user and system time, of this process and its children


@contextmanager
def _silenced() -> Iterator[None]:
    """Hides standard error, on which the profiler writes about itself from C++."""
    kept = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
