"""What a user sees of a running cell: progress where there is a terminal, plain lines where there is none."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.progress import Task as Bar
from rich.table import Table
from rich.text import Text

from fasthebb_cli.console.formats import clock, counted, labels, pace, percent, printable
from fasthebb_cli.console.tables import plain_table

PLAIN_SECONDS = 5.0  # without a terminal, at most one line of progress in this time

LINES_LEFT_OUT = 10


class Stage(Protocol):
    """What is said of a stage of a cell."""

    @property
    def name(self) -> str: ...
    @property
    def directory(self) -> Path: ...


class Work(Protocol):
    """What a stage has to do: epochs of so many samples, and what to warn of before it starts."""

    @property
    def epochs(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def notes(self) -> Sequence[str]: ...


class Place(Protocol):
    """How far a stage has come: finished epochs, and steps of the next."""

    @property
    def epoch(self) -> int: ...
    @property
    def step(self) -> int: ...


class View:
    """Lines, progress and tables on a console; lines also go to the log of the stage that is running."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.log: logging.Logger | None = None

    def note(self, text: str, style: str = "dim") -> None:
        text = printable(text)
        self.console.print(escape(text), style=style, soft_wrap=True, highlight=False)
        if self.log is not None:
            self.log.info(text)

    def warn(self, text: str) -> None:
        self.note(f"warning: {text}", "yellow")

    def unread(self, sources: Mapping[str, str | None]) -> None:
        """Own code whose source can't be had."""
        for key in (key for key, digest in sources.items() if digest is None):
            self.warn(f"{key}: the source of this code can't be read, so that no run of it is reused or resumed")

    def left_out(self, lines: Sequence[str]) -> None:
        """Damaged images that a run goes without: the first by their errors, and how many there are."""
        for line in lines[:LINES_LEFT_OUT]:
            self.warn(line)
        if lines:
            self.warn(f"{counted(len(lines), 'image')} can't be read and {'is' if len(lines) == 1 else 'are'} left out")

    def differs(self, stage: Stage, nearest: Path, difference: Mapping[str, tuple[Any, Any]]) -> None:
        changes = ", ".join(f"{key} {there} -> {here}" for key, (there, here) in difference.items())
        self.note(f"{stage.name}: new directory; from {nearest.name} it differs in {changes or 'the stage before it'}")

    def skipped(self, stage: Stage, results: Mapping[str, Any]) -> None:
        self.note(f"{stage.name}: finished before, reused from {stage.directory}")

    def finished(self, stage: Stage, results: Mapping[str, Any]) -> None:
        parts = [f"{stage.name}: done in {clock(results['seconds'])}"]
        if results["top1"] is not None:
            parts.append(f"top-1 {percent(results['top1'])} %")
        if results["images_per_second"]:
            parts.append(f"{pace(results['images_per_second'])} images/s")
        self.note(", ".join(parts), "bold")
        if results.get("layers"):
            self.console.print(_layer_table(results["layers"]))

    @contextmanager
    def stage(self, stage: Stage, task: Work, position: Place) -> Iterator["StageDisplay"]:
        done = (position.epoch * task.samples) + min(position.step * task.batch_size, task.samples)
        display = StageDisplay(self, stage, task, done)
        if done:
            self.note(f"{stage.name}: resumed at epoch {position.epoch + 1}, step {position.step + 1}")
        for note in task.notes:
            self.warn(f"{stage.name}: {note}")
        with display.progress:
            yield display

    def outcomes(self, rows: Sequence[tuple[Stage, Mapping[str, Any], bool]]) -> None:
        """The table that ends a cell."""
        table = plain_table()
        for name in ("stage", "top-1 %", "top-5 %", "labels", "time", "where"):
            table.add_column(name, justify="left" if name in ("stage", "where") else "right", overflow="fold")
        for stage, results, cached in rows:
            split = f" ({results['split']})" if results.get("split") else ""
            table.add_row(
                stage.name + split, percent(results["top1"]), percent(results["top5"]), labels(results),
                "cached" if cached else clock(results["seconds"]), str(stage.directory),
            )  # fmt: skip
        self.console.print()
        self.console.print(table)


class StageDisplay:
    """The progress of one stage, over all its epochs."""

    def __init__(self, view: View, stage: Stage, task: Work, done: int) -> None:
        self.view, self.stage_name, self.task = view, stage.name, task
        self.total, self.done, self.before = task.samples * task.epochs, done, done
        self.began = self.last_line = time.perf_counter()
        self.progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f} %"),
            Speed(), console=view.console, transient=True, disable=not view.console.is_terminal,
        )  # fmt: skip
        self.bar = self.progress.add_task(self._title(done), total=self.total, completed=done, display=self)

    def advance(self, images: int) -> None:
        self.done += images
        self.progress.update(self.bar, completed=self.done, description=self._title(self.done - 1))

    def epoch_done(self, epoch: int, metrics: Mapping[str, Any], warnings: Sequence[str]) -> None:
        for warning in warnings:
            self.view.warn(f"{self.stage_name}, epoch {epoch}: {warning}")
        line = f"{self.stage_name} epoch {epoch}/{self.task.epochs}  {summary(metrics)}  {self.speed()}"
        now = time.perf_counter()
        if self.view.log is not None:
            self.view.log.info(line)
        if self.view.console.is_terminal:
            return
        if now - self.last_line >= PLAIN_SECONDS or epoch == self.task.epochs:
            self.last_line = now
            self.view.console.print(escape(line), soft_wrap=True, highlight=False)

    def speed(self) -> str:
        """Images per second of this session, and the time that the rest of the stage takes at that rate."""
        rate = (self.done - self.before) / max(time.perf_counter() - self.began, 1e-9)
        if rate <= 0:
            return ""
        left = f"  {clock((self.total - self.done) / rate)} left" if self.done < self.total else ""
        return f"{pace(rate)} images/s{left}"

    def _title(self, done: int) -> str:
        epoch = min(max(done, 0) // max(self.task.samples, 1) + 1, self.task.epochs)
        return f"{self.stage_name} epoch {epoch}/{self.task.epochs}"


class Speed(ProgressColumn):
    def render(self, task: Bar) -> Text:
        return Text(task.fields["display"].speed(), style="cyan")


def summary(metrics: Mapping[str, Any]) -> str:
    """An epoch's numbers in a few words: losses and accuracies, or how much each layer moved."""
    if "probes" in metrics:
        return f"{len(metrics['probes'])} layers"
    if "layers" in metrics:
        return "  ".join(
            f"{short} {layer['update']:.1e}" + (f" ({layer['dead']} dead)" if layer["dead"] else "")
            for short, layer in zip(_short(list(metrics["layers"])), metrics["layers"].values(), strict=True)
        )
    shown = ("train_loss", "train_top1", "validation_top1", "top1", "loss", "squared_error", "divergence")
    parts = []
    for name in shown:
        if name in metrics:
            value = f"{percent(metrics[name])} %" if "top" in name else f"{metrics[name]:.4g}"
            parts.append(f"{name.replace('_', ' ').replace('top1', 'top-1')} {value}")
    return "  ".join(parts)


def _layer_table(layers: Mapping[str, Mapping[str, float]]) -> Table:
    """Scores of a probe, in percent."""
    table = plain_table()
    table.add_column("layer")
    names = list(next(iter(layers.values())))
    for name in names:
        table.add_column(f"{name.replace('top', 'top-')} %", justify="right")
    for layer, scores in layers.items():
        table.add_row(escape(layer), *(percent(scores[name]) for name in names))
    return table


def _short(names: Sequence[str]) -> Sequence[str]:
    """Layer names without what follows the first dot, where that tells them apart."""
    heads = [name.split(".")[0] for name in names]
    return heads if len(set(heads)) == len(names) else names
