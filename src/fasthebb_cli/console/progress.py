"""How far a pass over a folder is: a bar that goes when it is done, or a plain line every few seconds."""

import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn

from fasthebb_cli.console.formats import clock
from fasthebb_cli.console.view import PLAIN_SECONDS, Speed, View


class FolderProgress:
    """Images done of all, or of what else `unit` names; `with` shows the bar.

    The rate leaves out the first batch, which waits for worker processes and a device to warm up.
    """

    def __init__(self, view: View, title: str, total: int, unit: str = "images") -> None:
        self.view, self.title, self.total, self.unit, self.done = view, title, total, unit, 0
        self.began = self.latest = self.last_line = time.perf_counter()
        self.first: tuple[int, float] | None = None  # units of the first batch, and when it was done
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
