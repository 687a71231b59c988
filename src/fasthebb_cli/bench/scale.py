"""`fasthebb bench scale`: a step against batch, width, image size, threads and units of a wide layer, one at a time.

Each axis grows over two decades of what it costs, or as far as memory allows.
"""

from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from torch import nn

from fasthebb_cli.bench.measure import Work, fitted_exponent, median_ms, powers_of_two
from fasthebb_cli.bench.subject import hebbian_step, learner_of, learning, subject_of
from fasthebb_cli.compute.device import Compute
from fasthebb_cli.console.tables import titled_table
from fasthebb_cli.settings.tools import BenchConfig

# exponents of the work: that of a network grows with the products of neighbouring layers' widths, and with pixels
THEORY = {"batch_size": 1, "width": 2, "size": 2, "threads": -1, "units": 1}


def bench_scale(bench: BenchConfig, compute: Compute, console: Console) -> dict[str, Any]:
    """Medians in milliseconds by axis and point, and the exponent of the last three points."""
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
    exponents: dict[str, float] = {}
    for axis, make in points.items():
        result[axis] = median_ms(make(), bench.repeats, compute.device)
        if len(result[axis]) > 1:
            exponents[axis] = fitted_exponent({float(x): y for x, y in list(result[axis].items())[-3:]})
        title = f"a step against {axis}, {bench.model.name}, {bench.rule.name}, {compute.describe()}"
        table = titled_table(console, title)
        for name in (axis, "ms", "ms relative to the first", f"{axis} relative to the first"):
            table.add_column(name, justify="right")
        first = next(iter(result[axis]))
        for point, value in result[axis].items():
            growth = float(point) / float(first)
            table.add_row(point, f"{value:.1f}", f"{value / result[axis][first]:.1f}", f"{growth:.1f}")
        console.print(table)
        if axis in exponents:
            what = f"time grows as {axis}^{exponents[axis]:.2f}, theory {THEORY[axis]}"
            console.print(what, style="dim", highlight=False)
    return {"axes": result, "exponents": exponents}


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
