"""`fasthebb bench WHAT`: measures, prints a table, and writes what it measured as JSON where asked to."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from fasthebb.learner import HebbianLearner
from fasthebb.nets.build import build_network
from fasthebb.settings import Execution
from fasthebb_cli.bench.data import loading_pace
from fasthebb_cli.bench.measure import Neighbours, median_ms
from fasthebb_cli.bench.step import Subject, hebbian_step, layer_inputs, layer_minimum, measure_step
from fasthebb_cli.compute.device import Compute, set_up
from fasthebb_cli.compute.graphs import graph_errors, replays
from fasthebb_cli.data.dataset import load_dataset
from fasthebb_cli.data.packed import PackedPixels
from fasthebb_cli.data.source import ImageFiles
from fasthebb_cli.data.transforms import to_float
from fasthebb_cli.errors import bad_input
from fasthebb_cli.run.directory import write_json
from fasthebb_cli.run.loop import versions
from fasthebb_cli.settings.tools import BenchConfig
from fasthebb_cli.stages.rule import attached

QUIET_CORES = 0.2  # used by other processes, on average: more, and what is measured is not what it takes


def run_bench(bench: BenchConfig, console: Console) -> None:
    """Does what is asked; see conf/bench.yaml."""
    compute = set_up(bench.gpu)
    began, neighbours = time.time(), Neighbours()
    with graph_errors():
        result = {"step": _step, "layer": _layer, "scale": _scale, "data": _data}[bench.what](bench, compute, console)
    others = neighbours.cores()
    if others is not None and others > QUIET_CORES:
        console.print(
            f"warning: other processes used {others:.1f} of {os.cpu_count()} cores meanwhile: times are too long; "
            "measure again on a quiet machine",
            style="yellow",
            soft_wrap=True,
        )
    header = {
        "what": bench.what, "model": bench.model.name, "rule": bench.rule.name, "batch_size": bench.batch,
        "size": bench.images, "device": compute.describe(), "threads": torch.get_num_threads(), "cpus": os.cpu_count(),
        "others_cores": others,
        "repeats": bench.repeats, "versions": versions(),
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
    }  # fmt: skip
    if bench.json is not None:
        write_json(Path(bench.json), header | result)
        console.print(f"written to {bench.json}", style="dim")


def subject_of(
    bench: BenchConfig,
    compute: Compute,
    *,
    width: float | None = None,
    batch: int | None = None,
    size: int | None = None,
) -> Subject:
    arguments = bench.model.arguments() | ({} if width is None else {"width": width})
    batch, size = batch or bench.batch, size or bench.images

    def network() -> nn.Module:
        torch.manual_seed(0)
        with bad_input():
            made = build_network(
                bench.model.name, arguments, channels=3, size=size, classes=bench.classes, whitening=False
            )
        return compute.place(made).train()

    def learner(network: nn.Module) -> HebbianLearner:
        more = {"layer_lr": bench.rule.layer_lr, "exclude": ["classifier*"]}
        return _learner(bench, compute, network, micro_batch=bench.gpu.micro_batch, **more)

    torch.manual_seed(0)
    images = compute.arrange(torch.randn(batch, 3, size, size).to(compute.device))
    labels = torch.randint(bench.classes, (batch,)).to(compute.device)
    return Subject(network, learner, images, labels, bench.rule.name, compute.autocast, _replays(bench, compute))


def _step(bench: BenchConfig, compute: Compute, console: Console) -> dict[str, Any]:
    result = measure_step(subject_of(bench, compute), repeats=bench.repeats, naive=bench.naive)
    what = f"{bench.model.name}, {bench.rule.name}, batch {bench.batch}, {compute.describe()}"
    table = _table(console, f"one step, {what}")
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


def _spread(quartiles: Sequence[float]) -> str:
    low, middle, high = (f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in quartiles)
    return f"{middle} ({low} to {high})"


def _layer(bench: BenchConfig, compute: Compute, console: Console) -> dict[str, Any]:
    """Each layer alone, on the input that it has in the network: its step against its own minimum."""
    subject = subject_of(bench, compute)
    layers = layer_inputs(subject)
    contenders = {}
    for name, (layer, x) in layers.items():
        contenders[f"{name} step"] = _step_of(_learner(bench, compute, nn.Sequential(layer)), x, compute)
        contenders[f"{name} minimum"] = subject.repeated(layer_minimum(layer, x))
    times = median_ms(contenders, bench.repeats, compute.device)
    table = _table(console, f"layers, {bench.model.name}, {bench.rule.name}, batch {bench.batch}, {compute.describe()}")
    for name in ("layer", "step ms", "minimum ms", "x minimum", "share %"):
        table.add_column(name, justify="left" if name == "layer" else "right")
    total = sum(value for name, value in times.items() if name.endswith("step"))
    result = {}
    for name in layers:
        step, least = times[f"{name} step"], times[f"{name} minimum"]
        result[name] = {"step_ms": step, "minimum_ms": least}
        table.add_row(name, f"{step:.1f}", f"{least:.1f}", f"{step / least:.2f}", f"{100 * step / total:.0f}")
    console.print(table)
    return {"layers": result}


def _learner(
    bench: BenchConfig, compute: Compute, network: nn.Module, *, micro_batch: int | None = None, **arguments: Any
) -> HebbianLearner:
    execution = Execution(micro_batch=micro_batch, compile=compute.compile, replay=_replays(bench, compute))
    return attached(bench.rule, network, "model", lr=1e-3, execution=execution, **arguments)


def _replays(bench: BenchConfig, compute: Compute) -> bool:
    return replays(bench.gpu, compute, bench.model.name, bench.rule.name)


def _step_of(learner: HebbianLearner, x: torch.Tensor, compute: Compute) -> Any:
    def work() -> None:
        with compute.autocast():
            learner.learn(x)

    return work


def _scale(bench: BenchConfig, compute: Compute, console: Console) -> dict[str, Any]:
    """Cost of a step against batch, width of the wide layer, image size and threads, one at a time."""
    points: dict[str, dict[str, Any]] = {
        "batch_size": {str(b): hebbian_step(subject_of(bench, compute, batch=b)) for b in (8, 16, 32, 64, 128)},
        "width": {str(w): hebbian_step(subject_of(bench, compute, width=w)) for w in (0.25, 0.5, 1.0, 1.5)},
        "size": {str(s): hebbian_step(subject_of(bench, compute, size=s)) for s in _sizes(bench)},
        "threads": {str(t): _on_threads(bench, compute, t) for t in _threads(compute)},
        "units": {str(u): _wide_layer(bench, compute, u) for u in (256, 1024, 4096, 16384)},
    }
    result: dict[str, Any] = {}
    for axis, contenders in points.items():
        result[axis] = median_ms(contenders, bench.repeats, compute.device)
        table = _table(console, f"a step against {axis}, {bench.model.name}, {bench.rule.name}, {compute.describe()}")
        for name in (axis, "ms", "ms relative to the first", f"{axis} relative to the first"):
            table.add_column(name, justify="right")
        first = next(iter(result[axis]))
        for point, value in result[axis].items():
            growth = float(point) / float(first)
            table.add_row(point, f"{value:.1f}", f"{value / result[axis][first]:.1f}", f"{growth:.1f}")
        console.print(table)
    return {"axes": result}


def _data(bench: BenchConfig, compute: Compute, console: Console) -> dict[str, Any]:
    """The loader's pace with 0, 1, 2, 4 .. decoding processes, the step's, and which of them is waited for."""
    dataset = load_dataset(bench.dataset, seed=0)
    size, channels = dataset.source.size, dataset.source.channels
    step = hebbian_step(subject_of(bench, compute, size=size))
    pixels = torch.zeros(bench.batch, channels, size, size, dtype=torch.uint8, device=compute.device)
    half = torch.full((channels,), 0.5, device=compute.device)

    def normalise_and_step() -> None:
        compute.arrange(to_float(pixels, half, half))
        step()

    step_pace = bench.batch / (median_ms({"step": normalise_and_step}, bench.repeats, compute.device)["step"] / 1000)
    table = _table(console, f"loading {dataset.name} at {size} x {size} for {bench.model.name}, {bench.rule.name}")
    for name in ("workers", "images/s", "images/s a worker", "step, images/s", "limit", "waiting for data %"):
        table.add_column(name, justify="left" if name == "limit" else "right")
    result: dict[str, Any] = {"step_images_per_second": step_pace, "data_size": size, "workers": {}}
    choices = [0, *_powers(os.cpu_count() or 1)] if isinstance(dataset.source, ImageFiles | PackedPixels) else [0]
    for workers in choices:
        pace = loading_pace(dataset, bench.batch, compute, workers=workers, batches=bench.repeats)
        # without workers an image is loaded and then learnt from; with them both go on at once
        busy, loading = 1 / step_pace, 1 / pace
        waiting = loading / (loading + busy) if workers == 0 else max(0.0, 1 - busy / loading)
        result["workers"][str(workers)] = {"images_per_second": pace, "waiting": waiting}
        limit = "loader" if pace < step_pace else "step"
        each = f"{pace / workers:,.0f}" if workers else "–"
        table.add_row(str(workers), f"{pace:,.0f}", each, f"{step_pace:,.0f}", limit, f"{100 * waiting:.0f}")
    console.print(table)
    if choices == [0]:
        advice = "; dataset.in_memory=false measures reading and decoding"
        always = ", as those of this data set always are"
        where = always if bench.dataset.in_memory is False else advice
        console.print(f"the images are in memory{where}", style="dim", soft_wrap=True)
    return result


def _sizes(bench: BenchConfig) -> list[int]:
    """Image sizes around the usual one."""
    return [bench.images * part // 4 for part in (4, 5, 6)]


def _threads(compute: Compute) -> list[int]:
    """1, 2, 4 .. up to what there is; a GPU has its own."""
    return _powers(torch.get_num_threads() if compute.device.type == "cpu" else 1)


def _powers(most: int) -> list[int]:
    return [1 << power for power in range(most.bit_length())]


def _on_threads(bench: BenchConfig, compute: Compute, threads: int) -> Any:
    step, usual = hebbian_step(subject_of(bench, compute)), torch.get_num_threads()

    def work() -> None:
        torch.set_num_threads(threads)
        step()
        torch.set_num_threads(usual)

    return work


def _wide_layer(bench: BenchConfig, compute: Compute, units: int) -> Any:
    """A fully connected layer of the given units on 2,304 inputs, as conv6 has it."""
    torch.manual_seed(0)
    layer = nn.Linear(2304, units, bias=False).to(compute.device)
    learner = _learner(bench, compute, nn.Sequential(layer))
    return _step_of(learner, torch.randn(bench.batch, 2304).to(compute.device), compute)


def _table(console: Console, title: str) -> Table:
    """An empty table below its title, which may be wider than it."""
    console.print(title, style="bold", soft_wrap=True)
    return Table(box=None, pad_edge=False, header_style="bold")
