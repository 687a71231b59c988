"""The table over all cells of a sweep: one row for each."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from fasthebb_cli.cli.sweep_summary import BUDGET_KEYS, Cell, key_of, measured, print_summary, value_of
from fasthebb_cli.console.formats import backward_passes, clock, counted, labels, percent
from fasthebb_cli.console.spent import backward_passes_of, seconds_of
from fasthebb_cli.console.tables import WIDE, plain_table
from fasthebb_cli.console.view import BACKWARD

OWN_KEYS = ("verb", "dry_run", "out")  # the command sets them; they are not what a cell is about


def title(number: int, overrides: Sequence[str]) -> str:
    """The heading of a cell's output: its number, from 0, is shown from 1."""
    shown = [item.removeprefix("++") for item in overrides if key_of(item) not in OWN_KEYS]
    return f"cell {number + 1}: {' '.join(shown)}"


def print_cells(console: Console, cells: Sequence[Cell]) -> None:
    """Prints a row for each cell, and below them the summary.

    A narrow console has no room for top-5, nor for the label fraction, which the number of labels tells. The end of a
    directory's name stands for its path there.
    """
    keys, is_wide = _swept_keys(cells), console.width >= WIDE
    failed = sum(cell["code"] != 0 for cell in cells)
    shown = [key for key in keys if is_wide or failed or key == "seed" or key not in BUDGET_KEYS]
    table = plain_table()
    for key in shown:
        table.add_column(escape(key), no_wrap=True)
    for name in ("top-1 %", *(["top-5 %"] if is_wide else []), "labels", BACKWARD, "time"):
        table.add_column(name, justify="right")
    table.add_column("where, or what went wrong" if failed else "where", overflow="fold")
    for cell in cells:
        chosen = [escape(value_of(cell, key)) for key in shown]
        if cell["code"] != 0:
            blank = [""] * (4 if is_wide else 3)
            table.add_row(*chosen, "[red]failed[/]", *blank, escape(cell["error"]))
            continue
        last = measured(cell)
        passes = backward_passes(backward_passes_of(cell["rows"]))
        how = clock(seconds_of(cell["rows"])) + (" (cached)" if all(row["cached"] for row in cell["rows"]) else "")
        where = last["directory"] if is_wide else f"…{last['directory'][-8:]}"
        scores = [percent(last[name]) for name in ("top1", *(["top5"] if is_wide else []))]
        table.add_row(*chosen, *scores, labels(last), passes, how, escape(where))
    console.print()
    console.print(table)
    if failed:
        again = "the same command does them again and reuses the rest"
        mend = "what they were given is wrong, as it says above"
        bad_input = all(cell["code"] in (0, 2) for cell in cells)
        console.print(f"{failed} of {counted(len(cells), 'cell')} failed; {mend if bad_input else again}")
    print_summary(console, cells, keys)


def _swept_keys(cells: Sequence[Cell]) -> list[str]:
    """The keys whose values differ between cells; of a single cell, all keys that it overrides."""
    keys = dict.fromkeys(key_of(item) for cell in cells for item in cell["overrides"])
    wanted = [key for key in keys if key not in OWN_KEYS]
    if len(cells) == 1:
        return wanted
    return [key for key in wanted if len({value_of(cell, key) for cell in cells}) > 1]
