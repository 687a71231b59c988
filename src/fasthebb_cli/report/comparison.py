"""`fasthebb compare A B`: how two stages differ in their results and in the settings of all stages behind them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fasthebb_cli.console.formats import backward_passes, clock, labels, pace, percent
from fasthebb_cli.console.tables import plain_table
from fasthebb_cli.console.view import is_imbalanced
from fasthebb_cli.errors import InputError
from fasthebb_cli.report.chains import BALANCED, METRICS, Index, setting_text, settings_of
from fasthebb_cli.report.directories import StageDirectory, is_stage, read_directory, siblings
from fasthebb_cli.run.directory import FINGERPRINT_FILE

UNKNOWN = "–"


def compare(places: list[Path], settings: dict[str, str], console: Console) -> None:
    """Prints the settings that differ, then the results side by side; differences are B minus A.

    Raises:
        InputError: a place is not the directory of a stage.
    """
    first, second = (_open(place) for place in places)
    for name, item in (("A", first), ("B", second)):
        console.print(f"{name}  {escape(str(item.path))} ({item.state})", highlight=False, soft_wrap=True)
    console.print()
    ours, theirs = _settings(first), _settings(second)
    keys = sorted(key for key in {*ours, *theirs} if setting_text(ours, key) != setting_text(theirs, key))
    if keys:
        console.print(_table("setting", [(key, setting_text(ours, key), setting_text(theirs, key)) for key in keys]))
    else:
        console.print("The settings are the same, also those of the stages before.", highlight=False)
    console.print()
    rows = _results(first.results, second.results)
    if rows:
        console.print(_table("result", rows))
    for item in (first, second):
        if item.state != "finished":
            console.print(escape(f"{item.path}: {item.state}, no results yet. {item.note}"), style="yellow",
                          highlight=False, soft_wrap=True)  # fmt: skip


def _open(place: Path) -> StageDirectory:
    directory = place if place.is_dir() else place.parent  # a model file stands for its directory
    if not is_stage(directory):
        raise InputError(f"{place} is no stage's directory: it has no {FINGERPRINT_FILE}; fasthebb runs lists them")
    return read_directory(directory)


def _settings(directory: StageDirectory) -> dict[str, Any]:
    """The settings of the stage and of the stages before it."""
    return {"stage": directory.stage} | settings_of(Index(siblings([directory.path])).chain(directory))


def _results(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of (name, A, B, difference)."""
    if not ours and not theirs:
        return []
    rows: list[tuple[str, ...]] = []
    told = [
        {f"{told} %": item.get(metric) for metric, told in METRICS.items() if metric != BALANCED or is_imbalanced(item)}
        | _by_layer(item)
        for item in (ours, theirs)
    ]
    alike = all(ours.get(key) == theirs.get(key) for key in ("dataset", "split", "samples"))
    for name in dict.fromkeys((*told[0], *told[1])):
        a, b = (item.get(name) for item in told)
        both = f"{100 * (b - a):+.1f}" if a is not None and b is not None else UNKNOWN
        rows.append((name, percent(a), percent(b), both if alike or both == UNKNOWN else "other images"))
    a, b = ours.get("loss"), theirs.get("loss")
    both = f"{b - a:+.4f}" if alike and a is not None and b is not None else UNKNOWN
    rows.append(("loss", _number(a), _number(b), both))
    a, b = ours.get("seconds"), theirs.get("seconds")
    faster = f"x {b / a:.2f}" if a and b else UNKNOWN
    rows.append(("time", *(UNKNOWN if value is None else clock(value) for value in (a, b)), faster))
    a, b = ours.get("images_per_second"), theirs.get("images_per_second")
    faster = f"x {b / a:.2f}" if a and b else UNKNOWN
    rows.append(("images/s", *(pace(value) if value else UNKNOWN for value in (a, b)), faster))
    a, b = ours.get("labels_train"), theirs.get("labels_train")
    difference = UNKNOWN if a is None or b is None else f"{b - a:+,}"
    rows.append(("labels", *(labels(results) if results else UNKNOWN for results in (ours, theirs)), difference))
    a, b = ours.get("backward_passes"), theirs.get("backward_passes")
    difference = UNKNOWN if a is None or b is None else f"{b - a:+,}"
    rows.append(("backward passes", backward_passes(a), backward_passes(b), difference))
    rows += _closed_form(ours, theirs)
    rows.append(("finished", *(str(results.get("finished", UNKNOWN)) for results in (ours, theirs)), ""))
    return rows


def _closed_form(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What closed forms have chosen, and the accuracy that they expect; empty for other stages."""
    chosen = [item.get("chosen") or {} for item in (ours, theirs)]
    keys = dict.fromkeys((*chosen[0], *chosen[1]))
    rows: list[tuple[str, ...]] = [(f"chosen {key}", *(setting_text(item, key) for item in chosen), "") for key in keys]
    a, b = ours.get("expected_top1"), theirs.get("expected_top1")
    if a is None and b is None:
        return rows
    difference = f"{100 * (b - a):+.1f}" if a is not None and b is not None else UNKNOWN
    return [*rows, ("expected top-1 %", percent(a), percent(b), difference)]


def _by_layer(results: Mapping[str, Any]) -> dict[str, float]:
    """Each head's score on each layer of a probe; empty for other stages."""
    layers = results.get("layers")
    return {
        f"{layer}, {METRICS.get(head, head)} %": score
        for layer, scores in (layers.items() if isinstance(layers, dict) else ()) for head, score in scores.items()
    }  # fmt: skip


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4f}"


def _table(title: str, rows: list[tuple[str, ...]]) -> Table:
    table = plain_table()
    for name in (title, "A", "B", "B against A")[: len(rows[0])]:
        table.add_column(name, justify="left" if name == title else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table
