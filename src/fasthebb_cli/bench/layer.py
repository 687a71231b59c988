"""`fasthebb bench layer`: each layer alone, its step against its own minimum."""

from typing import Any

from rich.console import Console
from torch import nn

from fasthebb_cli.bench.measure import median_ms
from fasthebb_cli.bench.minimum import layer_inputs, layer_minimum
from fasthebb_cli.bench.subject import learner_of, learning, subject_of
from fasthebb_cli.compute.device import Compute
from fasthebb_cli.console.tables import titled_table
from fasthebb_cli.settings.tools import BenchConfig


def bench_layer(bench: BenchConfig, compute: Compute, console: Console) -> dict[str, Any]:
    """Medians in milliseconds; each layer gets the input that it has in the network."""
    subject = subject_of(bench, compute)
    layers = layer_inputs(subject)
    contenders = {}
    for name, (layer, x) in layers.items():
        learner = learner_of(bench, compute, nn.Sequential(layer))
        contenders[f"{name} step"] = learning(learner, x, compute.autocast)
        contenders[f"{name} minimum"] = subject.repeated(layer_minimum(layer, x))
    times = median_ms(contenders, bench.repeats, compute.device)
    title = f"layers, {bench.model.name}, {bench.rule.name}, batch {bench.batch}, {compute.describe()}"
    table = titled_table(console, title)
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
