"""`fasthebb bench data`: the loader's pace with 0, 1, 2, 4 .. workers, the step's pace, and which one waits."""

import os
import time
from typing import Any

import torch
from rich.console import Console

from fasthebb_cli.bench.measure import median_ms, powers_of_two
from fasthebb_cli.bench.subject import hebbian_step, subject_of
from fasthebb_cli.compute.device import Compute
from fasthebb_cli.console.tables import titled_table
from fasthebb_cli.data.dataset import Dataset, load_dataset
from fasthebb_cli.data.loading import batches as load
from fasthebb_cli.data.packed import PackedPixels
from fasthebb_cli.data.source import ImageFiles
from fasthebb_cli.data.transforms import to_float
from fasthebb_cli.settings.tools import BenchConfig


def bench_data(bench: BenchConfig, compute: Compute, console: Console) -> dict[str, Any]:
    """Images per second of the step, and of the loader by number of workers."""
    dataset = load_dataset(bench.dataset, seed=0)
    size = dataset.source.size
    step_pace = _step_pace(bench, compute, dataset)
    table = titled_table(
        console, f"loading {dataset.name} at {size} x {size} for {bench.model.name}, {bench.rule.name}"
    )
    for name in ("workers", "images/s", "images/s a worker", "step, images/s", "limit", "waiting for data %"):
        table.add_column(name, justify="left" if name == "limit" else "right")
    result: dict[str, Any] = {"step_images_per_second": step_pace, "data_size": size, "workers": {}}
    decodes = isinstance(dataset.source, ImageFiles | PackedPixels)
    for workers in [0, *powers_of_two(os.cpu_count() or 1)] if decodes else [0]:
        pace = loading_pace(dataset, bench.batch, compute, workers=workers, batches=bench.repeats)
        # without workers the step waits while a batch is loaded; with them both run at once
        busy, loading = 1 / step_pace, 1 / pace
        waiting = loading / (loading + busy) if workers == 0 else max(0.0, 1 - busy / loading)
        result["workers"][str(workers)] = {"images_per_second": pace, "waiting": waiting}
        limit = "loader" if pace < step_pace else "step"
        each = f"{pace / workers:,.0f}" if workers else "–"
        table.add_row(str(workers), f"{pace:,.0f}", each, f"{step_pace:,.0f}", limit, f"{100 * waiting:.0f}")
    console.print(table)
    if not decodes:
        advice = "; dataset.in_memory=false measures reading and decoding"
        always = ", as those of this data set always are"
        where = always if bench.dataset.in_memory is False else advice
        console.print(f"the images are in memory{where}", style="dim", soft_wrap=True)
    return result


def loading_pace(dataset: Dataset, batch_size: int, compute: Compute, *, workers: int, batches: int) -> float:
    """Images per second, read, decoded and put on the device as bytes, in shuffled order.

    The first batches don't count, since workers start and decode ahead in them. A small data set is read repeatedly.
    """
    lead = 1 + 2 * workers  # each worker is two batches ahead
    indices = dataset.train.repeat(-(-(batches + lead) * batch_size // len(dataset.train)))
    stream = load(dataset.source, indices, batch_size=batch_size, device=compute.device, order_seed=0, workers=workers)
    images = 0
    began = time.perf_counter()
    for step, (pixels, _) in enumerate(stream, 1):
        images += len(pixels)
        if step == lead:
            began, images = time.perf_counter(), 0
        if step == lead + batches:
            break
    return images / (time.perf_counter() - began)


def _step_pace(bench: BenchConfig, compute: Compute, dataset: Dataset) -> float:
    """Images per second of normalising and a Hebbian step."""
    size, channels = dataset.source.size, dataset.source.channels
    step = hebbian_step(subject_of(bench, compute, size=size))
    pixels = torch.zeros(bench.batch, channels, size, size, dtype=torch.uint8, device=compute.device)
    half = torch.full((channels,), 0.5, device=compute.device)

    def normalise_and_step() -> None:
        compute.arrange(to_float(pixels, half, half))
        step()

    return bench.batch / (median_ms({"step": normalise_and_step}, bench.repeats, compute.device)["step"] / 1000)
