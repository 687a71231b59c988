"""`fasthebb bench scale`: a step against batch, width, image size, threads and units of a wide layer, one at a time."""

from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from torch import nn

from fasthebb_cli.bench.measure import Work, median_ms, powers_of_two
from fasthebb_cli.bench.subject import hebbian_step, learner_of, learning, subject_of
from fasthebb_cli.compute.device import Compute
from fasthebb_cli.console.tables import titled_table
from fasthebb_cli.settings.tools import BenchConfig


def bench_scale(bench: BenchConfig, compute: Compute, console: Console) -> dict[str, Any]:
    """Medians in milliseconds, by axis and point."""
    threads = powers_of_two(torch.get_num_threads() if compute.device.type == "cpu" else 1)  # a GPU has its own
    points: dict[str, dict[str, Work]] = {
        "batch_size": {str(b): hebbian_step(subject_of(bench, compute, batch=b)) for b in (8, 16, 32, 64, 128)},
        "width": {str(w): hebbian_step(subject_of(bench, compute, width=w)) for w in (0.25, 0.5, 1.0, 1.5)},
        "size": {str(s): hebbian_step(subject_of(bench, compute, size=s)) for s in _sizes(bench)},
        "threads": {str(t): _on_threads(hebbian_step(subject_of(bench, compute)), t) for t in threads},
        "units": {str(u): _wide_layer(bench, compute, u) for u in (256, 1024, 4096, 16384)},
    }
    result: dict[str, Any] = {}
    for axis, contenders in points.items():
        result[axis] = median_ms(contenders, bench.repeats, compute.device)
        title = f"a step against {axis}, {bench.model.name}, {bench.rule.name}, {compute.describe()}"
        table = titled_table(console, title)
        for name in (axis, "ms", "ms relative to the first", f"{axis} relative to the first"):
            table.add_column(name, justify="right")
        first = next(iter(result[axis]))
        for point, value in result[axis].items():
            growth = float(point) / float(first)
            table.add_row(point, f"{value:.1f}", f"{value / result[axis][first]:.1f}", f"{growth:.1f}")
        console.print(table)
    return {"axes": result}


def _sizes(bench: BenchConfig) -> list[int]:
    """The usual image size, and larger ones."""
    return [bench.images * quarters // 4 for quarters in (4, 5, 6)]


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
