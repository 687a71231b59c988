"""`fasthebb report RUNS ... [out=DIR]`: what finished runs say, as Markdown, CSV and one HTML page. Trains nothing."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fasthebb_cli.errors import InputError
from fasthebb_cli.report.chains import SCRATCH, Index
from fasthebb_cli.report.directories import DAMAGED, StageDirectory, count_states, find_directories, read_directory
from fasthebb_cli.run.directory import FINGERPRINT_FILE

if TYPE_CHECKING:
    from fasthebb_cli.report.grid import Grid
    from fasthebb_cli.report.tables import Cell

NARROW, MEAN_WIDTH = 80, 18  # characters of a terminal, and of a mean with its number of seeds
NEEDED = ("jinja2", "matplotlib", "scipy")  # of the extra `report`


def report(places: list[Path], settings: dict[str, str], console: Console) -> None:
    """Writes report.md, report.csv and report.html into `out` and prints the means.

    Raises:
        InputError: a package or a place is missing, or nothing there is a finished evaluation.
        RunError: `out` can't be written.
    """
    absent = [name for name in NEEDED if find_spec(name) is None]
    if absent:
        raise InputError(f'a report needs {", ".join(absent)}: pip install "fasthebb[report]"')
    if not settings["out"]:
        raise InputError("out must name a directory, as in out=report")
    from fasthebb_cli.report.grid import build_grids
    from fasthebb_cli.report.layers import accuracies_by_layer
    from fasthebb_cli.report.page import write_report
    from fasthebb_cli.report.sections import build_section
    from fasthebb_cli.report.tables import csv_layer_rows, csv_rows

    directories = find_directories(places)
    index = Index([*siblings(places), *directories])
    grids = build_grids(directories, index)
    if not grids:
        named = ", ".join(map(str, places))
        raise InputError(f"{named}: no finished evaluation or probe to report on; found {_found(directories)}")
    out = Path(settings["out"])
    rows, sections = csv_rows(grids), []
    for grid in grids:
        layers = accuracies_by_layer(grid)
        rows += csv_layer_rows(grid, layers) if layers else []
        sections.append(build_section(grid, layers, unfinished_lines(directories, grid.dataset)))
    write_report(out, title_of(grids), rows, sections, unfinished_notes(directories))
    for grid, section in zip(grids, sections, strict=True):
        console.print()
        console.print(grid.title, style="bold", highlight=False)
        if section.tables:
            console.print(_means(section.tables[0].columns, section.tables[0].rows))
            console.print(section.verdict, highlight=False)
        elif section.layers:
            console.print(_by_layer(section.layers.columns, section.layers.rows))
        for line in section.choosing:
            console.print(escape(line), style="yellow", highlight=False)
        for line in section.missing:
            console.print(escape(f"missing: {line}"), style="yellow", highlight=False)
    console.print()
    for name in ("report.html", "report.md", "report.csv"):
        console.print(escape(str(out / name)), highlight=False, soft_wrap=True)


def siblings(places: Sequence[Path]) -> list[StageDirectory]:
    """Stage directories beside those that were named alone: the stages before them may be there."""
    alone = [place for place in places if (place / FINGERPRINT_FILE).exists()]
    parents = dict.fromkeys(place.resolve().parent for place in alone)
    return [read_directory(path.parent) for parent in parents for path in sorted(parent.glob(f"*/{FINGERPRINT_FILE}"))]


def title_of(grids: Sequence["Grid"]) -> str:
    """What is compared: rules on data sets."""
    all_rules = {method.rule for grid in grids for method in grid.main}
    rules, scratch = sorted(all_rules - {SCRATCH}), SCRATCH in all_rules
    what = f"{', '.join(rules)} against training from scratch" if rules and scratch else ", ".join(rules or [SCRATCH])
    return f"{what} on {', '.join(dict.fromkeys(grid.dataset for grid in grids))}"


def unfinished_lines(directories: Sequence[StageDirectory], dataset: str) -> list[str]:
    """What was begun on a data set and is not finished: a line per rule, label fraction, stage and state."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for item in directories:
        content = item.content
        if item.state != "finished" and content.get("dataset.name") == dataset:
            fraction = content.get("label_fraction")
            cell = str(content.get("rule.name")) + (f", {100 * fraction:g} %" if fraction is not None else "")
            how = f"failed: {item.note}" if item.state == "failed" else item.state
            groups.setdefault((cell, item.stage, how), []).append(str(content.get("seed")))
    return [f"{cell}: {stage} of seed {', '.join(seeds)} {how}" for (cell, stage, how), seeds in groups.items()]


def unfinished_notes(directories: Sequence[StageDirectory]) -> list[str]:
    """How many stages are not in the report because they are not finished, and which can't be read."""
    left = [directory for directory in directories if directory.state != "finished"]
    notes = [f"Not in this report: {count_states(left)} stages of {len(directories):,}."] if left else []
    return notes + [f"{item.path.name}: {item.note}" for item in left if item.note.startswith(DAMAGED)]


def _found(directories: Sequence[StageDirectory]) -> str:
    kinds = [item.kind for item in directories if item.state == "finished"]
    finished = f" ({', '.join(f'{kinds.count(kind)} {kind}' for kind in dict.fromkeys(kinds))})" if kinds else ""
    return f"{len(directories)} stages: {count_states(directories)}{finished}"


def _means(columns: Sequence[tuple[str, str]], rows: Sequence[tuple[str, list["Cell"]]]) -> Table:
    """Few methods stand side by side, a row per label fraction; many, or long names, below each other."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    if sum(max(len(name) + 9, MEAN_WIDTH) for name, _ in rows) + len("100 % (3,000)") <= NARROW:
        table.add_column("labels", no_wrap=True)
        for name, _ in rows:
            table.add_column(f"{escape(name)}, top-1 %", justify="right")
        for number, (fraction, labels) in enumerate(columns):
            table.add_row(f"{fraction} ({labels})", *(_cell_text(cells[number]) for _, cells in rows))
        return table
    table.add_column("top-1 %", overflow="fold")
    for fraction, labels in columns:
        table.add_column(f"{fraction}\n({labels})", justify="right")
    for name, cells in rows:
        table.add_row(escape(name), *map(_cell_text, cells))
    return table


def _by_layer(columns: Sequence[str], rows: Sequence[tuple[str, list["Cell"]]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("top-1 %", overflow="fold")
    for layer in columns:
        table.add_column(escape(layer), justify="right")
    for name, cells in rows:
        table.add_row(escape(name), *map(_cell_text, cells))
    return table


def _cell_text(cell: "Cell") -> str:
    if not cell.n:
        return "[dim]–[/]"
    text = f"{cell.text} [dim](n={cell.n})[/]"
    return f"[bold]{text}[/]" if cell.best else text
