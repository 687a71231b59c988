"""`fasthebb bench WHAT`: measures, prints a table, and writes the measurements as JSON where `json` names a file."""

import os
import time
from pathlib import Path

import torch
from rich.console import Console

from fasthebb_cli.bench.data import bench_data
from fasthebb_cli.bench.layer import bench_layer
from fasthebb_cli.bench.measure import Neighbours
from fasthebb_cli.bench.readout import bench_readout
from fasthebb_cli.bench.runs import bench_run
from fasthebb_cli.bench.scale import bench_scale
from fasthebb_cli.bench.step import bench_step
from fasthebb_cli.bench.traffic import bench_traffic
from fasthebb_cli.compute.device import set_up
from fasthebb_cli.compute.graphs import graph_errors
from fasthebb_cli.run.directory import write_json
from fasthebb_cli.run.loop import versions
from fasthebb_cli.settings.tools import BenchConfig

BENCHES = {
    "step": bench_step, "layer": bench_layer, "scale": bench_scale, "data": bench_data, "traffic": bench_traffic,
    "run": bench_run, "readout": bench_readout,
}  # fmt: skip
QUIET_CORES = 0.2  # used by other processes, on average: beyond it, the measured times are too long


def run_bench(bench: BenchConfig, console: Console) -> None:
    """Runs one bench; see conf/bench.yaml."""
    compute = set_up(bench.gpu)
    began, neighbours = time.time(), Neighbours()
    with graph_errors():
        result = BENCHES[bench.what](bench, compute, console)
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
