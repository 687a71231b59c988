"""What a sweep leaves behind: one small file per cell, and the table over all of them that ends it.

Cells may run in other processes or on other machines, so they report through files below `out`.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fasthebb_cli.cli.failures import fail
from fasthebb_cli.cli.objective import check_search
from fasthebb_cli.console.formats import clock, labels, make_console, percent
from fasthebb_cli.errors import InputError
from fasthebb_cli.run.directory import mark_start, write_text

SWEEP_VARIABLE = "FASTHEBB_SWEEP"  # for the processes of a sweep's cells, which inherit the environment: its name
OWN_KEYS = ("verb", "dry_run", "out")


def begin() -> None:
    """Marks the start of a command, for itself and for the processes that it starts."""
    os.environ[SWEEP_VARIABLE] = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    mark_start()


_reports: set[Path] = set()  # folders that the cells of this process's sweep report to


def write_cell(out: str, number: int, overrides: Sequence[str], cell: dict[str, Any]) -> None:
    """Reports one cell: `code` (exit code), `rows` (its stages' results), `error` when it failed."""
    _reports.add(_directory(out))
    path = _directory(out) / f"{number:05d}.json"
    write_text(path, json.dumps({"number": number, "overrides": list(overrides)} | cell) + "\n")


class SweepTable(Callback):
    """Hydra calls it when a sweep begins and when it ends: it checks a search, and prints the table over all cells.

    Hydra takes no notice of errors here, so each way ends the process with its exit code.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _reports.add(_directory(config.hydra.sweep.dir))
        direction = config.hydra.sweeper.get("direction")  # a sweeper that searches has one
        if direction is not None and not config.get("dry_run"):
            try:
                check_search(config.get("objective"), str(getattr(direction, "name", direction)))
            except InputError as error:
                sys.exit(fail(error))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        code = _conclude(_directory(config.hydra.sweep.dir))
        found = Path(config.hydra.sweep.dir) / "optimization_results.yaml"  # the Optuna sweeper's
        if config.get("objective") is not None and found.exists():
            best = yaml.safe_load(found.read_text())
            chosen = " ".join(f"{key}={value}" for key, value in best["best_params"].items())
            make_console().print(
                escape(f"best {config.objective}: {best['best_value']:.4g} with {chosen}"), style="bold"
            )
        sys.exit(code)


def end_early() -> int:
    """The table of what was done, when a sweep is stopped or can't go on; gives the worst exit code."""
    return max((_conclude(directory) for directory in _reports), default=0)


def _conclude(directory: Path) -> int:
    """Prints the table, takes the reports away and gives the worst exit code."""
    files = sorted(directory.glob("*.json"))
    cells = [json.loads(path.read_text()) for path in files]
    if cells:
        print_cells(make_console(), cells)
    for path in files:
        path.unlink()
    with suppress(OSError):  # there is none, or another cell has reported meanwhile
        directory.rmdir()
    return max((cell["code"] for cell in cells), default=0)


def print_cells(console: Console, cells: Sequence[dict[str, Any]]) -> None:
    """One row per cell; then, where several seeds were run, their means side by side."""
    keys = _swept_keys(cells)
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for key in keys:
        table.add_column(escape(key), no_wrap=True)
    for name in ("top-1 %", "top-5 %", "labels", "time"):
        table.add_column(name, justify="right")
    table.add_column("where, or what went wrong", overflow="fold")
    for cell in cells:
        chosen = [escape(_value(cell, key)) for key in keys]
        if cell["code"] != 0:
            table.add_row(*chosen, "[red]failed[/]", "", "", "", escape(cell["error"]))
            continue
        last = _measured(cell)
        seconds = sum(row["seconds"] for row in cell["rows"] if not row["cached"])
        how = "cached" if all(row["cached"] for row in cell["rows"]) else clock(seconds)
        where = escape(last["directory"])
        table.add_row(*chosen, percent(last["top1"]), percent(last["top5"]), labels(last), how, where)
    console.print()
    console.print(table)
    failed = sum(cell["code"] != 0 for cell in cells)
    if failed:
        again = "the same command does them again and reuses the rest"
        mend = "what they were given is wrong, as it says above"
        bad_input = all(cell["code"] in (0, 2) for cell in cells)
        console.print(f"{failed} of {len(cells)} cells failed; {mend if bad_input else again}")
    _print_means(console, cells, [key for key in keys if key != "seed"], repeated="seed" in keys)


def _print_means(console: Console, cells: Sequence[dict[str, Any]], keys: Sequence[str], *, repeated: bool) -> None:
    groups: dict[tuple[str, ...], list[float]] = {}
    for cell in cells:
        if cell["code"] == 0 and (top1 := _measured(cell)["top1"]) is not None:
            groups.setdefault(tuple(_value(cell, key) for key in keys), []).append(100 * top1)
    if not repeated or not groups:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in keys:
        table.add_column(escape(key), no_wrap=True)
    for name in ("top-1 %, mean", "sd", "seeds"):
        table.add_column(name, justify="right")
    for chosen, values in groups.items():
        deviation = f"{statistics.stdev(values):.1f}" if len(values) > 1 else "–"
        table.add_row(*map(escape, chosen), f"{statistics.fmean(values):.1f}", deviation, str(len(values)))
    console.print()
    console.print(table)


def _measured(cell: dict[str, Any]) -> dict[str, Any]:
    """The last stage that has an accuracy, or where none has the last."""
    rows: list[dict[str, Any]] = cell["rows"]
    return next((row for row in reversed(rows) if row["top1"] is not None), rows[-1])


def _directory(out: str) -> Path:
    return Path(out) / ".sweeps" / os.environ.get(SWEEP_VARIABLE, "unnamed")


def _swept_keys(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Keys whose values differ between cells; with one cell, all that it overrides."""
    keys = dict.fromkeys(_key(item) for cell in cells for item in cell["overrides"])
    wanted = [key for key in keys if key not in OWN_KEYS]
    if len(cells) == 1:
        return wanted
    return [key for key in wanted if len({_value(cell, key) for cell in cells}) > 1]


def _value(cell: dict[str, Any], key: str) -> str:
    return next((item.split("=", 1)[1] for item in cell["overrides"] if _key(item) == key), "")


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")
