"""`fasthebb runs [RUNS ...] [state=failed]`: every stage's directory with its state and what came out of it."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fasthebb_cli.errors import InputError
from fasthebb_cli.report.directories import STATES, StageDirectory, count_states, find_directories
from fasthebb_cli.run.wording import clock, labels, percent

STYLES = {"finished": "green", "running": "cyan", "failed": "red", "stale": "yellow"}
KINDS = ("pretrain", "finetune", "probe", "evaluate")
WIDE = 140  # characters that all columns need
UNKNOWN = "–"


def list_runs(places: list[Path], settings: dict[str, str], console: Console) -> None:
    """Prints one row per stage, and how many there are of each state.

    Raises:
        InputError: a place is missing or holds no runs, or there is no such state.
    """
    wanted = settings["state"]
    if wanted and wanted not in STATES:
        raise InputError(f"state must be one of {', '.join(STATES)}, not {wanted!r}")
    directories = find_directories(places or [Path("runs")])
    shown = [item for item in directories if not wanted or item.state == wanted]
    if shown:
        console.print(_table(sorted(shown, key=_order), is_wide=console.width >= WIDE))
    for item in shown:
        if item.state != "finished":
            console.print(f"[{STYLES[item.state]}]{item.state}[/] {escape(f'{item.path}: {item.note}')}",
                          highlight=False, soft_wrap=True)  # fmt: skip
    console.print(f"{len(directories):,} stages: {count_states(directories)}", highlight=False)


def _table(directories: Sequence[StageDirectory], *, is_wide: bool) -> Table:
    """All columns, or those that fit into 80 characters: where a run lies then follows from its fingerprint's end."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2 if is_wide else 1, 0, 0))
    names = ["state", "stage", "data", "model", "rule", "labels", "seed", "top-1 %", "time"]
    if is_wide:
        names = [*names[:5], "fraction", *names[5:], "images/s", "finished (UTC)", "where"]
    for name in names:
        is_number = name in ("fraction", "labels", "seed", "top-1 %", "time", "images/s")
        table.add_column(name, justify="right" if is_number else "left", overflow="ellipsis" if name != "where" else "fold",
                         no_wrap=name != "where")  # fmt: skip
    for item in directories:
        state = f"[{STYLES[item.state]}]{item.state}[/]"
        row = [item.stage, _dataset(item), _model(item), _rule(item), _labels(item, short=not is_wide),
               str(item.content.get("seed", UNKNOWN)), percent(item.results.get("top1")), _time(item)]  # fmt: skip
        if is_wide:
            speed = item.results.get("images_per_second")
            row = [*row[:4], _fraction(item), *row[4:], f"{speed:,.0f}" if speed else UNKNOWN,
                   _when(item), str(item.path)]  # fmt: skip
        table.add_row(state, *map(escape, row))
    return table


def _order(item: StageDirectory) -> tuple[object, ...]:
    """By data set, model, rule, fraction and seed, then in the order in which stages run."""
    kind = KINDS.index(item.kind) if item.kind in KINDS else len(KINDS)
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
    """Of a pre-training there is none: it is shared by all fractions."""
    if item.kind == "pretrain":
        return None
    found = item.content.get("label_fraction", item.results.get("label_fraction"))
    return None if found is None else float(found)


def _fraction(item: StageDirectory) -> str:
    value = _fraction_value(item)
    return UNKNOWN if value is None else f"{100 * value:g} %"


def _labels(item: StageDirectory, *, short: bool) -> str:
    if not item.results:
        return _fraction(item)
    return f"{item.results['labels_train']:,}" if short else labels(item.results)


def _time(item: StageDirectory) -> str:
    seconds = item.results.get("seconds")
    return UNKNOWN if seconds is None else clock(seconds)


def _when(item: StageDirectory) -> str:
    return str(item.results.get("finished", UNKNOWN)).replace("T", " ").removesuffix("Z")[:16]
