"""What a user sees of a running cell: lines, tables and the progress of each stage."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fasthebb_cli.console.formats import backward_passes, clock, counted, labels, pace, percent, printable
from fasthebb_cli.console.progress import StageProgress, Work
from fasthebb_cli.console.spent import backward_passes_of, seconds_of
from fasthebb_cli.console.tables import plain_table

BACKWARD = "backward\npasses"  # a column of images that went through one
SPLITS = ("test", "validation")  # of results that say on how many images of which they were measured
IMBALANCE = 1.5  # images of the most frequent class for one of the rarest
LINES_LEFT_OUT = 10  # damaged images whose errors are shown


class Settings(Protocol):
    @property
    def measures(self) -> bool: ...


class Stage(Protocol):
    """What the lines about a stage need to know."""

    @property
    def name(self) -> str: ...
    @property
    def directory(self) -> Path: ...
    @property
    def settings(self) -> Settings: ...


class Place(Protocol):
    """How far a stage has come: `epoch` finished epochs, and `step` steps of the next one."""

    @property
    def epoch(self) -> int: ...
    @property
    def step(self) -> int: ...


class View:
    """Lines, progress and tables on a console; lines also go to the log of the stage that is running.

    Args:
        brief: it is not said how a stage differs from those before it.
    """

    def __init__(self, console: Console, *, brief: bool = False) -> None:
        self.console, self.brief = console, brief
        self.log: logging.Logger | None = None

    def note(self, text: str, style: str = "dim") -> None:
        text = printable(text)
        self.console.print(escape(text), style=style, soft_wrap=True, highlight=False)
        if self.log is not None:
            self.log.info(text)

    def warn(self, text: str) -> None:
        self.note(f"warning: {text}", "yellow")

    def unread(self, sources: Mapping[str, str | None]) -> None:
        """Warns of a user's own code whose source can't be read.

        Args:
            sources: key of the configuration -> digest of the source, or None.
        """
        for key in (key for key, digest in sources.items() if digest is None):
            self.warn(f"{key}: the source of this code can't be read, so that no run of it is reused or resumed")

    def left_out(self, lines: Sequence[str]) -> None:
        """Warns of damaged images that a run leaves out: the first errors, and the number of all.

        Args:
            lines: an error for each image.
        """
        for line in lines[:LINES_LEFT_OUT]:
            self.warn(line)
        if lines:
            self.warn(f"{counted(len(lines), 'image')} can't be read and {'is' if len(lines) == 1 else 'are'} left out")

    def differs(self, stage: Stage, nearest: Path, difference: Mapping[str, tuple[Any, Any]]) -> None:
        """Says why a stage gets a new directory: the settings that differ from its nearest neighbour's.

        Args:
            difference: key -> value in `nearest`, value here.
        """
        if self.brief:
            return
        changes = ", ".join(f"{key} {there} -> {here}" for key, (there, here) in difference.items())
        self.note(f"{stage.name}: new directory; from {nearest.name} it differs in {changes or 'the stage before it'}")

    def skipped(self, stage: Stage, results: Mapping[str, Any]) -> None:
        self.note(f"{stage.name}: finished before, reused from {stage.directory}")

    def finished(self, stage: Stage, results: Mapping[str, Any]) -> None:
        parts = [f"{stage.name}: done in {clock(results['seconds'])}"]
        if results["top1"] is not None:
            of = f" of {results['samples']:,} {results['split']} images" if results.get("split") in SPLITS else ""
            parts.append(f"top-1 {percent(results['top1'])} %{of}")
        if is_imbalanced(results):
            parts.append(f"balanced {percent(results['balanced_top1'])} %")
        if results.get("calibration_error") is not None:
            parts.append(f"calibration error {percent(results['calibration_error'])} %")
        if results.get("chosen"):
            settings = ", ".join(f"{key}={value}" for key, value in results["chosen"].items())
            parts.append(f"chose {settings}: {percent(results['expected_top1'])} % of left-out labels right")
        if results["images_per_second"]:
            parts.append(f"{pace(results['images_per_second'])} images/s")
        self.note(", ".join(parts), "bold")
        if results.get("layers"):
            self.console.print(_layer_table(results["layers"]))

    @contextmanager
    def stage(self, stage: Stage, task: Work, position: Place) -> Iterator[StageProgress]:
        done = (position.epoch * task.samples) + min(position.step * task.batch_size, task.samples)
        display = StageProgress(self, stage.name, task, done)
        if done:
            self.note(f"{stage.name}: resumed at epoch {position.epoch + 1}, step {position.step + 1}")
        for note in task.notes:
            self.warn(f"{stage.name}: {note}")
        with display.progress:
            yield display

    def outcomes(self, rows: Sequence[tuple[Stage, Mapping[str, Any], bool]]) -> None:
        """Prints the table that ends a cell.

        Args:
            rows: stage, its results, and whether they were there before.
        """
        table = plain_table()
        balanced = ["balanced\ntop-1 %"] if any(is_imbalanced(results) for _, results, _ in rows) else []
        for name in ("stage", "top-1 %", *balanced, "top-5 %", "labels", BACKWARD, "time", "where"):
            table.add_column(name, justify="left" if name in ("stage", "where") else "right", overflow="fold")
        stages = []
        for stage, results, cached in rows:
            split = f" ({results['split']})" if results.get("split") else ""
            table.add_row(
                escape(stage.name + split), percent(results["top1"]),
                *(percent(results.get("balanced_top1")) for _ in balanced), percent(results["top5"]), labels(results),
                backward_passes(results.get("backward_passes")),
                clock(results["seconds"]) + (" (cached)" if cached else ""), escape(str(stage.directory)),
            )  # fmt: skip
            stages.append({**results, "measures": stage.settings.measures})
        if len(rows) > 1:
            total = backward_passes(backward_passes_of(stages))
            empty = [""] * (3 + len(balanced))
            table.add_row("in all", *empty, total, clock(seconds_of(stages)), "", style="bold")
        self.console.print()
        self.console.print(table)


def is_imbalanced(results: Mapping[str, Any]) -> bool:
    """Whether classes are so unlike in number that the mean over them is worth a column beside that over images."""
    return results.get("balanced_top1") is not None and (results.get("imbalance") or 1) >= IMBALANCE


def _layer_table(layers: Mapping[str, Mapping[str, float]]) -> Table:
    """Scores of a probe in percent: a row for each layer, a column for each metric."""
    table = plain_table()
    table.add_column("layer")
    names = list(next(iter(layers.values())))
    for name in names:
        table.add_column(f"{name.replace('top', 'top-')} %", justify="right")
    for layer, scores in layers.items():
        table.add_row(escape(layer), *(percent(scores[name]) for name in names))
    return table
