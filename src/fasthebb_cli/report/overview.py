"""`fasthebb runs [RUNS ...] [state=failed]`: every stage's directory with its state and its key numbers."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from fasthebb_cli.console.formats import backward_passes, choice, clock, labels, pace, percent
from fasthebb_cli.console.tables import WIDE, plain_table
from fasthebb_cli.errors import InputError
from fasthebb_cli.report.directories import STATES, StageDirectory, count_states, find_directories
from fasthebb_cli.settings.stages import ALL_KINDS

STYLES = {"finished": "green", "running": "cyan", "failed": "red", "stale": "yellow"}
NUMBERS = ("fraction", "seed", "top-1 %", "labels", "time", "backward passes", "images/s")
ORDER = list(ALL_KINDS)
UNKNOWN = "–"
UNBOUNDED = 10_000


def list_runs(places: list[Path], settings: dict[str, str], console: Console) -> None:
    """Prints one row per stage, and how many stages are in each state.

    Raises:
        InputError: a place is missing or holds no runs, or no state has this name.
    """
    wanted = settings["state"]
    if wanted and wanted not in STATES:
        raise InputError(f"state must be one of {', '.join(STATES)}, not {wanted!r}")
    directories = find_directories(places or [Path("runs")])
    shown = sorted((item for item in directories if not wanted or item.state == wanted), key=_order)
    if shown:
        table = _table(shown, is_wide=console.width >= WIDE)
        if not console.is_terminal:  # a file may have long lines
            unbounded = console.options.update(width=UNBOUNDED)
            console.width = max(console.width, Measurement.get(console, unbounded, table).maximum)
        console.print(table)
    for item in shown if console.width < WIDE else ():  # there is no column for it
        if chosen := _chosen(item):
            console.print(f"{_short(item)} chose {escape(chosen)}", highlight=False, soft_wrap=True)
    for item in shown:
        if item.state != "finished":
            console.print(f"[{STYLES[item.state]}]{item.state}[/] {escape(f'{item.path}: {item.note}')}",
                          highlight=False, soft_wrap=True)  # fmt: skip
    console.print(f"{len(directories):,} stages: {count_states(directories)}", highlight=False)


def _table(directories: Sequence[StageDirectory], *, is_wide: bool) -> Table:
    """All columns, or those that fit into 80 characters. There the end of a directory's name stands for its path.

    If all stages share the data set or the model, it stands above the table.
    """
    columns = {
        "state": [item.state for item in directories],
        "stage": [item.stage for item in directories],
        "data": [_dataset(item) for item in directories],
        "model": [_model(item) for item in directories],
        "rule": [_rule(item) for item in directories],
        "fraction": [_fraction(item) for item in directories],
        "seed": [str(item.content.get("seed", UNKNOWN)) for item in directories],
        "top-1 %": [_top1(item) for item in directories],
        "labels": [_labels(item, is_wide=is_wide) for item in directories],
        "time": [_time(item) for item in directories],
    }
    if is_wide:
        columns["backward passes"] = [_backward_passes(item) for item in directories]
        columns["images/s"] = [_speed(item) for item in directories]
        columns["finished (UTC)"] = [_when(item) for item in directories]
        if any(_chosen(item) for item in directories):
            columns["chosen"] = [_chosen(item) or UNKNOWN for item in directories]
    columns["where"] = [str(item.path) if is_wide else _short(item) for item in directories]
    shared = [columns.pop(name)[0] for name in ("data", "model") if len(set(columns[name])) == 1]
    table = plain_table(padding=(0, 2 if is_wide else 1, 0, 0), title=", ".join(shared) or None, title_justify="left",
                        title_style="bold")  # fmt: skip
    for name in columns:
        table.add_column(name, justify="right" if name in NUMBERS else "left", no_wrap=name != "where", overflow="fold")
    for state, *rest in zip(*columns.values(), strict=True):
        table.add_row(f"[{STYLES[state]}]{state}[/]", *map(escape, rest))
    return table


def _short(item: StageDirectory) -> str:
    """The end of a directory's name, which is unique."""
    return f"…{item.path.name[-8:]}"


def _order(item: StageDirectory) -> tuple[object, ...]:
    """Sorts by data set, model, rule, fraction and seed, then in the order in which the stages run."""
    kind = ORDER.index(item.kind) if item.kind in ORDER else len(ORDER)
    fraction = _fraction_value(item)
    return (_dataset(item), _model(item), _rule(item), -1.0 if fraction is None else fraction,
            item.content.get("seed", -1), kind, str(item.path))  # fmt: skip


def _dataset(item: StageDirectory) -> str:
    return str(item.content.get("dataset.name", UNKNOWN))


def _model(item: StageDirectory) -> str:
    width = item.content.get("model.width")
    return str(item.content.get("model.name", UNKNOWN)) + (f" x{width:g}" if width not in (None, 1) else "")


def _rule(item: StageDirectory) -> str:
    whitening = item.content.get("rule.whitening")
    return str(item.content.get("rule.name", UNKNOWN)) + (f" w{whitening:g}" if whitening is not None else "")


def _fraction_value(item: StageDirectory) -> float | None:
    """None for a stage that all fractions share."""
    if item.shared:
        return None
    found = item.content.get("label_fraction", item.results.get("label_fraction"))
    return None if found is None else float(found)


def _fraction(item: StageDirectory) -> str:
    value = _fraction_value(item)
    return UNKNOWN if value is None else f"{100 * value:g} %"


def _top1(item: StageDirectory) -> str:
    """Of a probe, the name and accuracy of the best layer."""
    layers = item.results.get("layers")
    scores = {layer: found["top1"] for layer, found in layers.items() if "top1" in found} if layers else {}
    if scores:
        best = max(scores, key=lambda layer: scores[layer])
        return f"{best} {percent(scores[best])}"
    return percent(item.results.get("top1"))


def _labels(item: StageDirectory, *, is_wide: bool) -> str:
    """How many labels were trained on, and how many validation labels were used to choose."""
    if not item.results:
        return UNKNOWN
    text = labels(item.results)
    return text if is_wide else text.replace(" + ", "+").replace(" val.", "v")


def _time(item: StageDirectory) -> str:
    seconds = item.results.get("seconds")
    return UNKNOWN if seconds is None else clock(seconds)


def _backward_passes(item: StageDirectory) -> str:
    return backward_passes(item.results.get("backward_passes"))


def _chosen(item: StageDirectory) -> str:
    """The classifier that a closed form chose; empty for other stages."""
    chosen = item.results.get("chosen")
    return choice(chosen, item.results.get("expected_top1")) if chosen else ""


def _speed(item: StageDirectory) -> str:
    speed = item.results.get("images_per_second")
    return pace(speed) if speed else UNKNOWN


def _when(item: StageDirectory) -> str:
    return str(item.results.get("finished", UNKNOWN)).replace("T", " ").removesuffix("Z")[:16]
