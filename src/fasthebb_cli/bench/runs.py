"""`fasthebb bench run plan=FILE`: seconds from a command's start to its end, and the accuracy that it reaches.

Every run is a process of its own with an empty folder, so starting, reading, solving and writing count. A plan in YAML:

    title: 150 labels of 3,000 digits
    levels: [80, 90, 95]                # accuracies in %, for which the seconds are told
    before: [python scripts/peers/split.py {shared}/split.npz seed={seed}]   # once for each seed, not timed
    runs:
      hpca:
        1 epoch: fasthebb train experiment=mnist5k/hpca pretrain.epochs=1 seed={seed} out={out}
      scikit-learn:
        100 centres: python scripts/peers/sklearn_patches.py {shared}/split.npz --clusters 100

{out} is the run's own folder, and {shared} one for all runs of a seed; both are deleted afterwards. {seed} counts the
repeats from 0. A run tells its accuracy as `top1`, in the results.json of an evaluate stage below {out}, or as JSON in
its last line of output.
"""

import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from fasthebb_cli.compute.device import Compute
from fasthebb_cli.console.tables import titled_table
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.settings.tools import BenchConfig

PLAN_KEYS = {"title": str, "levels": list, "before": list, "runs": dict}


def bench_run(bench: BenchConfig, compute: Compute, console: Console) -> dict[str, Any]:
    """Raises:
    InputError: no plan, or one that is none.
    RunError: a command failed, or told no accuracy.
    """
    plan = read_plan(bench.plan)
    measured: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {label: [] for label in commands} for name, commands in plan["runs"].items()
    }
    for seed in range(bench.repeats):
        with tempfile.TemporaryDirectory() as shared:
            for command in plan.get("before", []):
                _output(filled(command, shared=shared, seed=seed))
            for name, commands in plan["runs"].items():
                for label, command in commands.items():
                    with tempfile.TemporaryDirectory() as out:
                        words = filled(command, out=out, shared=shared, seed=seed)
                        point = timed(words, Path(out))
                    measured[name][label].append(point)
                    what = f"{name}, {label}, seed {seed}: {point['seconds']:.1f} s, {100 * point['top1']:.1f} %"
                    console.print(what, style="dim", highlight=False, soft_wrap=True)
    _print(console, plan, measured)
    return {"title": plan["title"], "levels": plan["levels"], "commands": plan["runs"], "runs": measured}


def read_plan(path: str | None) -> dict[str, Any]:
    """Raises:
    InputError: there is no such file, or it is no plan.
    """
    if path is None:
        raise InputError("bench run needs a plan of commands: plan=FILE, as plan=docs/benchmarks/mnist5k_runs.yaml")
    try:
        plan: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"plan={path}: {' '.join(str(error).split())}") from error
    if not isinstance(plan, dict):
        raise InputError(f"plan={path}: it must be a mapping of title, levels, runs and, if needed, before")
    for key, value in plan.items():
        if key not in PLAN_KEYS or not isinstance(value, PLAN_KEYS[key]):
            raise InputError(f"plan={path}: {key} is no key, or of the wrong type; accepted: {', '.join(PLAN_KEYS)}")
    missing = [key for key in ("title", "levels", "runs") if not plan.get(key)]
    if missing:
        raise InputError(f"plan={path}: {missing[0]} is missing")
    if not all(type(level) in (int, float) and 0 < level <= 100 for level in plan["levels"]):
        raise InputError(f"plan={path}: levels must be accuracies in %, as [80, 90, 95]")
    for name, commands in plan["runs"].items():
        pairs = commands.items() if isinstance(commands, dict) else [(0, 0)]
        if not isinstance(name, str) or not all(isinstance(text, str) for pair in pairs for text in pair):
            raise InputError(f"plan={path}: runs.{name} must be a mapping from a label to a command, both text")
    for command in [*plan.get("before", []), *(text for runs in plan["runs"].values() for text in runs.values())]:
        try:
            filled(command, out="", shared="", seed=0)
        except (AttributeError, IndexError, KeyError, ValueError) as error:
            raise InputError(
                f"plan={path}: {str(command)[:80]!r} is no command ({error}); it may contain {{out}}, {{shared}} and "
                "{seed}, and other braces twice"
            ) from error
    return plan


def timed(command: list[str], folder: Path) -> dict[str, float]:
    """Seconds and top1 of one command.

    Args:
        folder: its own.

    Raises:
        RunError: it failed, or told no accuracy.
    """
    began = time.perf_counter()
    printed = _output(command)
    seconds = time.perf_counter() - began
    found = sorted(folder.rglob("results.json"), key=lambda path: path.stat().st_mtime)
    told = [json.loads(path.read_text()) for path in found]
    top1 = next((one["top1"] for one in reversed(told) if one.get("stage") == "evaluate"), None)
    if top1 is None:
        try:
            top1 = float(json.loads(printed.strip().rpartition("\n")[2])["top1"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{shlex.join(command)} told no accuracy: no evaluate stage below {{out}}, and its last line "
                'is not JSON with "top1"'
            ) from error
    return {"seconds": seconds, "top1": float(top1)}


def seconds_to(level: float, runs: Mapping[str, list[dict[str, float]]]) -> float | None:
    """The fewest seconds (median over seeds) of a run that reaches `level` % on average; None: none does."""
    reached = [
        statistics.median(point["seconds"] for point in points)
        for points in runs.values()
        if 100 * statistics.fmean(point["top1"] for point in points) >= level
    ]
    return min(reached, default=None)


def filled(command: str, **values: object) -> list[str]:
    """The words of a command, with values for its placeholders and this Python's programs."""
    words = [word.format_map(values) for word in shlex.split(command)]
    programs = {"fasthebb": [sys.executable, "-m", "fasthebb_cli"], "python": [sys.executable]}
    return programs.get(words[0], words[:1]) + words[1:]


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RunError(f"{shlex.join(command)}: {error}") from error
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2]
        raise RunError(f"{shlex.join(command)} failed with exit code {done.returncode}: {last}")
    return done.stdout


def _print(console: Console, plan: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    table = titled_table(console, plan["title"])
    for name in ("", "run", "s", "top-1 %", "sd"):
        table.add_column(name, justify="left" if name in ("", "run") else "right")
    for name, runs in measured.items():
        for label, points in runs.items():
            seconds = statistics.median(point["seconds"] for point in points)
            top1 = [100 * point["top1"] for point in points]
            spread = f"{statistics.stdev(top1):.1f}" if len(top1) > 1 else ""
            table.add_row(name, label, f"{seconds:.1f}", f"{statistics.fmean(top1):.1f}", spread)
    console.print(table)
    reached = titled_table(console, "seconds to an accuracy")
    reached.add_column("")
    for level in plan["levels"]:
        reached.add_column(f"{level} %", justify="right")
    for name, runs in measured.items():
        found = [seconds_to(level, runs) for level in plan["levels"]]
        reached.add_row(name, *("-" if seconds is None else f"{seconds:.1f}" for seconds in found))
    console.print(reached)
