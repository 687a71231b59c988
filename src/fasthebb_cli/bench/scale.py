"""`fasthebb bench scale`: a step against batch, width, image size, threads and units of a wide layer, one at a time.

Each axis grows over two decades of what it costs, or as far as memory allows.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.console import Console
from torch import nn

from fasthebb_cli.bench.measure import Work, fitted_exponent, flops, median_ms, powers_of_two
from fasthebb_cli.bench.subject import hebbian_step, learner_of, learning, subject_of
from fasthebb_cli.compute.device import Compute
from fasthebb_cli.console.tables import titled_table
from fasthebb_cli.settings.tools import BenchConfig


def bench_scale(bench: BenchConfig, compute: Compute, console: Console) -> dict[str, Any]:
    """Medians in milliseconds by axis and point; exponents of time and of counted work, from the last three points."""
    threads = powers_of_two(torch.get_num_threads() if compute.device.type == "cpu" else 1)  # a GPU has its own
    batches = sorted({max(2, bench.batch * factor // 32) for factor in (1, 4, 16, 64, 256)})
    usual = float(bench.model.arguments().get("width", 1.0))
    # made when it is an axis's turn: the largest networks take gigabytes
    points: dict[str, Callable[[], dict[str, Work]]] = {
        "batch_size": lambda: {str(b): hebbian_step(subject_of(bench, compute, batch=b)) for b in batches},
        "width": lambda: {
            str(usual * w): hebbian_step(subject_of(bench, compute, width=usual * w)) for w in (0.125, 0.5, 1.0, 2.0)
        },
        "size": lambda: {str(s): hebbian_step(subject_of(bench, compute, size=s)) for s in _sizes(bench)},
        "threads": lambda: {str(t): _on_threads(hebbian_step(subject_of(bench, compute)), t) for t in threads},
        "units": lambda: {str(u): _wide_layer(bench, compute, u) for u in (64, 256, 1024, 4096, 16384)},
    }
    result: dict[str, Any] = {}
    exponents: dict[str, dict[str, float]] = {}
    for axis, make in points.items():
        contenders = make()
        work = {point: flops(contender) for point, contender in contenders.items()}
        result[axis] = median_ms(contenders, bench.repeats, compute.device)
        exponents[axis] = {"time": _exponent(result[axis]), "work": _exponent(work)}
        title = f"a step against {axis}, {bench.model.name}, {bench.rule.name}, {compute.describe()}"
        table = titled_table(console, title)
        for name in (axis, "GFLOP", "ms", "ms relative to the first", f"{axis} relative to the first"):
            table.add_column(name, justify="right")
        first = next(iter(result[axis]))
        for point, value in result[axis].items():
            growth = float(point) / float(first)
            gflop, relative = f"{work[point] / 1e9:.2f}", f"{value / result[axis][first]:.1f}"
            table.add_row(point, gflop, f"{value:.1f}", relative, f"{growth:.1f}")
        console.print(table)
        what = "time grows as {axis}^{time:.2f}, its work as {axis}^{work:.2f}"
        console.print(what.format(axis=axis, **exponents[axis]), style="dim", highlight=False)
    return {"axes": result, "exponents": exponents}


def _exponent(values: Mapping[str, float]) -> float:
    """Of the last three points; 0 for a single one."""
    last = {float(point): value for point, value in list(values.items())[-3:]}
    return fitted_exponent(last) if len(last) > 1 else 0.0


def _sizes(bench: BenchConfig) -> list[int]:
    """The usual image size, and larger ones."""
    return [bench.images * quarters // 4 for quarters in (4, 6, 8, 12)]


def _on_threads(step: Work, threads: int) -> Callable[[], None]:
    usual = torch.get_num_threads()

    def work() -> None:
        torch.set_num_threads(threads)
        step()
        torch.set_num_threads(usual)

    return work


def _wide_layer(bench: BenchConfig, compute: Compute, units: int) -> Work:
    """A step of a fully connected layer with the given units on 2,304 inputs, as conv6 has it."""
    torch.manual_seed(0)
    layer = nn.Linear(2304, units, bias=False).to(compute.device)
    learner = learner_of(bench, compute, nn.Sequential(layer))
    return learning(learner, torch.randn(bench.batch, 2304).to(compute.device), compute.autocast)
