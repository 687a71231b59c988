"""`fasthebb report RUNS ... [out=DIR]`: finished runs as Markdown, CSV and one HTML page. It trains nothing."""

from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fasthebb_cli.console.tables import plain_table
from fasthebb_cli.errors import InputError
from fasthebb_cli.report.chains import RANDOM, SCRATCH, Index
from fasthebb_cli.report.directories import DAMAGED, StageDirectory, count_states, find_directories, siblings
from fasthebb_cli.settings.checks import is_path

if TYPE_CHECKING:
    from fasthebb_cli.report.grid import Grid
    from fasthebb_cli.report.tables import Cell

NARROW, MEAN_WIDTH = 80, 18  # characters: of a narrow terminal, and of a mean with its number of seeds
CONTROLS = {RANDOM: "random filters", SCRATCH: "training from scratch"}
NEEDED = ("jinja2", "matplotlib", "scipy")  # the packages of the extra `report`


def report(places: list[Path], settings: dict[str, str], console: Console) -> None:
    """Writes report.md, report.csv and report.html into `out` and prints the means.

    Raises:
        InputError: a package or a place is missing, or there is no finished evaluation or probe.
        RunError: `out` can't be written.
    """
    absent = [name for name in NEEDED if find_spec(name) is None]
    if absent:
        raise InputError(f'a report needs {", ".join(absent)}: pip install "fasthebb[report]"')
    out = _folder(settings["out"])
    from fasthebb_cli.report import csv_table
    from fasthebb_cli.report.grid import build_grids, measures_left_out
    from fasthebb_cli.report.layers import accuracies_by_layer
    from fasthebb_cli.report.page import write_report
    from fasthebb_cli.report.sections import build_section

    directories = find_directories(places)
    index = Index([*siblings(places), *directories])
    grids = build_grids(directories, index)
    if not grids:
        named, left_out = ", ".join(map(str, places)), any(map(measures_left_out, directories))
        only = "; those on left-out labels are shown by fasthebb advise" if left_out else ""
        raise InputError(f"{named}: no finished evaluation or probe to report on; found {_found(directories)}{only}")
    rows, sections = [row for grid in grids for row in csv_table.accuracy_rows(grid)], []
    for grid in grids:
        layers = accuracies_by_layer(grid)
        rows += csv_table.layer_rows(grid, layers) if layers else []
        sections.append(build_section(grid, layers, unfinished_lines(directories, grid.dataset)))
    write_report(out, title_of(grids), rows, sections, absent_notes(directories))
    for grid, section in zip(grids, sections, strict=True):
        console.print()
        console.print(grid.title, style="bold", highlight=False)
        if section.tables:
            console.print(_means(section.tables[0].columns, section.tables[0].rows))
            for line in filter(None, (section.verdict, section.verdict_on_learning)):
                console.print(line, highlight=False)
        elif section.layers:
            console.print(_by_column(section.layers.columns, section.layers.rows))
        for line in section.choosing:
            console.print(escape(line), style="yellow", highlight=False)
        for line in section.missing:
            console.print(escape(f"missing: {line}"), style="yellow", highlight=False)
    console.print()
    for name in ("report.html", "report.md", "report.csv"):
        console.print(escape(str(out / name)), highlight=False, soft_wrap=True)


def _folder(text: str) -> Path:
    """The folder that `out` names, which need not be there.

    Raises:
        InputError: it is empty, or is or lies below a file.
    """
    try:
        is_path("out", text)
    except ValueError as error:
        raise InputError(str(error)) from error
    out = Path(text)
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"out={out}: {there} is a file; give a folder, as in out=report")
    return out


def title_of(grids: Sequence["Grid"]) -> str:
    """The report's title: rules on data sets."""
    all_rules = {method.rule for grid in grids for method in grid.main}
    rules = sorted(all_rules - CONTROLS.keys())
    against = [text for rule, text in CONTROLS.items() if rule in all_rules]
    what = ", ".join(rules or sorted(all_rules))
    if rules and against:
        what += f" against {' and '.join(against)}"
    return f"{what} on {', '.join(dict.fromkeys(grid.dataset for grid in grids))}"


def unfinished_lines(directories: Sequence[StageDirectory], dataset: str) -> list[str]:
    """The stages on a data set that were begun and are not finished: a line per rule, fraction, stage and state."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for item in directories:
        content = item.content
        if item.state != "finished" and content.get("dataset.name") == dataset:
            fraction = content.get("label_fraction")
            cell = str(content.get("rule.name")) + (f", {100 * fraction:g} %" if fraction is not None else "")
            how = f"failed: {item.note}" if item.state == "failed" else item.state
            groups.setdefault((cell, item.stage, how), []).append(str(content.get("seed")))
    return [f"{cell}: {stage} of seed {', '.join(seeds)} {how}" for (cell, stage, how), seeds in groups.items()]


def absent_notes(directories: Sequence[StageDirectory]) -> list[str]:
    """How many stages are not in the report, why, and which can't be read."""
    from fasthebb_cli.report.grid import measures_left_out

    left = [directory for directory in directories if directory.state != "finished"]
    notes = [f"Not in this report: {count_states(left)} stages of {len(directories):,}."] if left else []
    folds = sum(map(measures_left_out, directories))
    notes += (
        [f"Not in this report: {folds} measurements on left-out labels; fasthebb advise shows them."] if folds else []
    )
    notes += [f"{item.path.name}: {item.note}" for item in left if item.note.startswith(DAMAGED)]
    return notes + [f"{item.path.name}: {item.unread}" for item in directories if item.unread]


def _found(directories: Sequence[StageDirectory]) -> str:
    kinds = Counter(item.kind for item in directories if item.state == "finished")
    finished = f" ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})" if kinds else ""
    return f"{len(directories)} stages: {count_states(directories)}{finished}"


def _means(columns: Sequence[tuple[str, str]], rows: Sequence[tuple[str, list["Cell"]]]) -> Table:
    """A column per method and a row per label fraction; the other way round for many methods or long names."""
    if sum(max(len(name) + 9, MEAN_WIDTH) for name, _ in rows) + len("100 % (3,000)") > NARROW:
        return _by_column([f"{fraction}\n({labels})" for fraction, labels in columns], rows)
    table = plain_table()
    table.add_column("labels", no_wrap=True)
    for name, _ in rows:
        table.add_column(f"{escape(name)}, top-1 %", justify="right")
    for number, (fraction, labels) in enumerate(columns):
        table.add_row(f"{fraction} ({labels})", *(_cell_text(cells[number]) for _, cells in rows))
    return table


def _by_column(columns: Sequence[str], rows: Sequence[tuple[str, list["Cell"]]]) -> Table:
    """A row per method, below the given heads."""
    table = plain_table()
    table.add_column("top-1 %", overflow="fold")
    for head in columns:
        table.add_column(escape(head), justify="right")
    for name, cells in rows:
        table.add_row(escape(name), *map(_cell_text, cells))
    return table


def _cell_text(cell: "Cell") -> str:
    if not cell.n:
        return "[dim]–[/]"
    text = f"{cell.text} [dim](n={cell.n})[/]"
    return f"[bold]{text}[/]" if cell.best else text
