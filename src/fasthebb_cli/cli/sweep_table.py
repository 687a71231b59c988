"""The table over all cells of a sweep, and the means over its seeds."""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from fasthebb_cli.console.formats import clock, counted, labels, percent
from fasthebb_cli.console.tables import plain_table

OWN_KEYS = ("verb", "dry_run", "out")  # the command sets them; they are not what a cell is about
Cell = dict[str, Any]  # overrides; code: exit code; error: message, if it failed; rows: one for each stage


def title(number: int, overrides: Sequence[str]) -> str:
    """The heading of a cell's output: its number, from 0, is shown from 1."""
    shown = [item.removeprefix("++") for item in overrides if _key(item) not in OWN_KEYS]
    return f"cell {number + 1}: {' '.join(shown)}"


def print_cells(console: Console, cells: Sequence[Cell]) -> None:
    """Prints a row for each cell; if the cells have several seeds, a second table with the means over seeds."""
    keys = _swept_keys(cells)
    table = plain_table()
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
        console.print(f"{failed} of {counted(len(cells), 'cell')} failed; {mend if bad_input else again}")
    _print_means(console, cells, [key for key in keys if key != "seed"], repeated="seed" in keys)


def _print_means(console: Console, cells: Sequence[Cell], keys: Sequence[str], *, repeated: bool) -> None:
    groups: dict[tuple[str, ...], list[float]] = {}
    for cell in cells:
        if cell["code"] == 0 and (top1 := _measured(cell)["top1"]) is not None:
            groups.setdefault(tuple(_value(cell, key) for key in keys), []).append(100 * top1)
    if not repeated or not groups:
        return
    table = plain_table()
    for key in keys:
        table.add_column(escape(key), no_wrap=True)
    for name in ("top-1 %, mean", "sd", "seeds"):
        table.add_column(name, justify="right")
    for chosen, values in groups.items():
        deviation = f"{statistics.stdev(values):.1f}" if len(values) > 1 else "–"
        table.add_row(*map(escape, chosen), f"{statistics.fmean(values):.1f}", deviation, str(len(values)))
    console.print()
    console.print(table)


def _measured(cell: Cell) -> dict[str, Any]:
    """The row of the last stage that has an accuracy; if none has one, the last row."""
    rows: list[dict[str, Any]] = cell["rows"]
    return next((row for row in reversed(rows) if row["top1"] is not None), rows[-1])


def _swept_keys(cells: Sequence[Cell]) -> list[str]:
    """The keys whose values differ between cells; of a single cell, all keys that it overrides."""
    keys = dict.fromkeys(_key(item) for cell in cells for item in cell["overrides"])
    wanted = [key for key in keys if key not in OWN_KEYS]
    if len(cells) == 1:
        return wanted
    return [key for key in wanted if len({_value(cell, key) for cell in cells}) > 1]


def _value(cell: Cell, key: str) -> str:
    return next((item.split("=", 1)[1] for item in cell["overrides"] if _key(item) == key), "")


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")
