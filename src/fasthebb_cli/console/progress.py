"""Progress of a stage and of a pass over a folder: a bar on a terminal, elsewhere a plain line every few seconds."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.progress import Task as Bar
from rich.text import Text

from fasthebb_cli.console.formats import clock, counted, pace, percent

if TYPE_CHECKING:
    from fasthebb_cli.console.view import View

PLAIN_SECONDS = 5.0  # without a terminal, at least so long between two lines of progress


class Work(Protocol):
    """What a stage has to do: so many epochs over so many samples; `notes` are warnings to show before it starts."""

    @property
    def epochs(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def notes(self) -> Sequence[str]: ...


class StageProgress:
    """The progress of one stage over all its epochs; the caller shows the bar with `with self.progress`.

    Args:
        done: images of epochs and steps before this start of the stage.
    """

    def __init__(self, view: "View", name: str, task: Work, done: int) -> None:
        self.view, self.name, self.task = view, name, task
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
            self.view.warn(f"{self.name}, epoch {epoch}: {warning}")
        line = f"{self.name} epoch {epoch}/{self.task.epochs}  {summary(metrics)}  {self.speed()}"
        now = time.perf_counter()
        if self.view.log is not None:
            self.view.log.info(line)
        if self.view.console.is_terminal:
            return
        if now - self.last_line >= PLAIN_SECONDS or epoch == self.task.epochs:
            self.last_line = now
            self.view.console.print(escape(line), soft_wrap=True, highlight=False)

    def speed(self) -> str:
        """Images per second since this start, and the time that the rest of the stage takes at that rate."""
        rate = (self.done - self.before) / max(time.perf_counter() - self.began, 1e-9)
        if rate <= 0:
            return ""
        left = f"  {clock((self.total - self.done) / rate)} left" if self.done < self.total else ""
        return f"{pace(rate)} images/s{left}"

    def _title(self, done: int) -> str:
        epoch = min(max(done, 0) // max(self.task.samples, 1) + 1, self.task.epochs)
        return f"{self.name} epoch {epoch}/{self.task.epochs}"


class FolderProgress:
    """The progress of one pass; `with` shows the bar.

    The rate leaves the first batch out, because it waits for worker processes and for the device to warm up.

    Args:
        total: how many of `unit` the pass has.
    """

    def __init__(self, view: "View", title: str, total: int, unit: str = "images") -> None:
        self.view, self.title, self.total, self.unit, self.done = view, title, total, unit, 0
        self.began = self.latest = self.last_line = time.perf_counter()
        self.first: tuple[int, float] | None = None  # units in the first batch, and the time when it was done
        terminal = view.console.is_terminal
        self.progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=24),
            TextColumn("{task.completed:,}/{task.total:,}"),
            Speed(), console=view.console, transient=True, disable=not terminal,
        )  # fmt: skip
        self.bar = self.progress.add_task(title, total=total, display=self)

    def __enter__(self) -> "FolderProgress":
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.progress.stop()

    def advance(self, count: int) -> None:
        self.done, self.latest = self.done + count, time.perf_counter()
        if self.first is None:
            self.first = (count, self.latest)
        self.progress.update(self.bar, completed=self.done)
        plain, finished = not self.view.console.is_terminal, self.done == self.total
        if plain and not finished and self.latest - self.last_line >= PLAIN_SECONDS:
            self.last_line = self.latest
            self.view.note(f"{self.title} {self.done:,}/{self.total:,}  {self.speed()}", "none")

    def speed(self) -> str:
        """Units per second, and the time that the rest takes at that rate."""
        if self.first is None:
            return ""
        count, moment = self.first if self.done > self.first[0] else (0, self.began)
        rate = (self.done - count) / max(self.latest - moment, 1e-9)
        left = f"  {clock((self.total - self.done) / rate)} left" if self.done < self.total else ""
        return f"{rate:,.0f} {self.unit}/s{left}"


class Speed(ProgressColumn):
    """The rate and the time left, as the bar's owner says them."""

    def render(self, task: Bar) -> Text:
        return Text(task.fields["display"].speed(), style="cyan")


def summary(metrics: Mapping[str, Any]) -> str:
    """An epoch's metrics on one line: losses and accuracies, or the size of each layer's update."""
    if "probes" in metrics:
        return counted(len(metrics["probes"]), "layer")
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


def _short(names: Sequence[str]) -> Sequence[str]:
    """Layer names up to their first dot, if they still differ; otherwise the whole names."""
    heads = [name.split(".")[0] for name in names]
    return heads if len(set(heads)) == len(names) else names
