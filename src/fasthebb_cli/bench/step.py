"""`fasthebb bench step`: a Hebbian step of a network against the least work, a backprop step and the naive form."""

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from torch.nn import functional as F

from fasthebb_cli.bench.measure import Work, alternating_ms, flops, paired_quartiles, peak_bytes
from fasthebb_cli.bench.minimum import minimum
from fasthebb_cli.bench.naive import naive_form
from fasthebb_cli.bench.subject import Subject, hebbian_step, subject_of
from fasthebb_cli.compute.device import Compute
from fasthebb_cli.console.tables import titled_table
from fasthebb_cli.settings.tools import BenchConfig

NAIVE_REPEATS = 5  # at most; each takes seconds


def bench_step(bench: BenchConfig, compute: Compute, console: Console) -> dict[str, Any]:
    result = measure_step(subject_of(bench, compute), repeats=bench.repeats, naive=bench.naive)
    what = f"{bench.model.name}, {bench.rule.name}, batch {bench.batch}, {compute.describe()}"
    table = titled_table(console, f"one step, {what}")
    for name in ("", "ms", "x minimum", "GFLOP", "x minimum", "peak MB", "x backprop"):
        table.add_column(name, justify="right" if name else "left")
    titles = {"step": "Hebbian step", "minimum": "bare minimum", "backprop": "backprop step", "naive": "naive form"}
    ratios = result["ratios"]
    medians = {"minimum": 1.0} | {name: ratios[f"{name}/minimum"][1] for name in ("step", "backprop")}
    for name, title in titles.items():
        milliseconds = result[f"{name}_ms"]
        if milliseconds is None:
            continue
        row = [f"{milliseconds:,.1f}", f"{medians[name]:.2f}" if name in medians else ""]
        if name in result["flops"]:
            work, memory = result["flops"], result["peak_bytes"]
            row += [f"{work[name] / 1e9:.1f}", f"{work[name] / work['minimum']:.2f}"]
            row += [f"{memory[name] / 1e6:,.0f}", f"{memory[name] / memory['backprop']:.2f}"]
        table.add_row(title, *row)
    console.print(table)
    of_step = [f"{_spread(ratios[f'step/{name}'])} x {name}" for name in ("minimum", "backprop")]
    if "naive/step" in ratios:
        of_step.append(f"naive form {_spread(ratios['naive/step'])} x the step")
    console.print(f"step, paired median and quartiles: {', '.join(of_step)}", soft_wrap=True)
    return result


def measure_step(subject: Subject, *, repeats: int, naive: bool) -> dict[str, Any]:
    """Times (ms), counted work (flops) and peak memory (bytes) of step, minimum and backprop; time of the naive form.

    `ratios` divide times of the same repeat: lower quartile, median, upper quartile.
    """
    device = subject.images.device
    makers = {"step": hebbian_step, "minimum": minimum, "backprop": backprop}
    contenders = {name: make(subject) for name, make in makers.items()}
    times = alternating_ms(contenders, repeats, device)
    result: dict[str, Any] = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    pairs = [("step", "minimum"), ("step", "backprop"), ("backprop", "minimum")]
    result["ratios"] = {f"{one}/{other}": paired_quartiles(times[one], times[other]) for one, other in pairs}
    result["naive_ms"] = None
    slow = naive_form(subject) if naive else {}
    if slow:
        layers = {name: work for name, (work, _) in slow.items()}
        beside = alternating_ms(layers | {"step": contenders["step"]}, min(repeats, NAIVE_REPEATS), device)
        parts = ([scale * value for value in beside[name]] for name, (_, scale) in slow.items())
        whole_batch = [sum(values) for values in zip(*parts, strict=True)]
        result["naive_ms"] = statistics.median(whole_batch)
        result["ratios"]["naive/step"] = paired_quartiles(whole_batch, beside["step"])
    result["flops"] = {
        name: flops(make(subject)) for name, make in makers.items()
    }  # fresh ones, since the counter does not see a replayed step
    result["peak_bytes"] = {name: peak_bytes(make(subject), device) for name, make in makers.items()}
    return result


def backprop(subject: Subject) -> Work:
    """Forward pass, backward pass and an SGD step of all parameters."""
    network = subject.network()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        with subject.autocast():
            loss = F.cross_entropy(network(subject.images), subject.labels)
        loss.backward()
        optimizer.step()

    return subject.repeated(work)


def _spread(quartiles: Sequence[float]) -> str:
    low, middle, high = (f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in quartiles)
    return f"{middle} ({low} to {high})"
