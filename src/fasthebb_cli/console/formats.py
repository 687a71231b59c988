"""How numbers are written, and the console that they are printed on."""

import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from fasthebb_cli.compute.launch import launch

# C0 but for tab and line feed, DEL, C1, what changes the direction of writing, and bytes that are no UTF-8
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST = 60  # characters of a name that is shown
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a text begins that a spreadsheet runs
LOST: list[str] = []  # why output could not be written
PLAIN_WIDTH = 160  # characters, where there is no terminal


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def labels(results: Mapping[str, Any]) -> str:
    """The number of training labels; then of validation labels, if an epoch was chosen by them."""
    choosing = f" + {results['labels_validation']:,} val." if results["labels_validation"] else ""
    return f"{results['labels_train']:,}{choosing}"


def backward_passes(count: float | None) -> str:
    """How many images went through a backward pass; "–" for a run of an earlier version, which does not say."""
    return "–" if count is None else f"{count:,.0f}"


def choice(chosen: Mapping[str, Any], expected_top1: float | None) -> str:
    """What a closed form chose, and the top-1 that it expects: kernel, sharpness=1, ridge=0.03 (expects 93.3 %)."""
    settings = {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in chosen.items()}
    parts = [value if key == "classifier" else f"{key}={value}" for key, value in settings.items()]
    return ", ".join(parts) + (f" (expects {percent(expected_top1)} %)" if expected_top1 is not None else "")


def points(difference: float) -> str:
    """A difference of accuracies in [-1, 1] as points, with its sign: +4.1, −0.5, ±0.0."""
    value = f"{100 * difference:+.1f}"
    return "±0.0" if float(value) == 0 else value.replace("-", "−")


def pace(rate: float) -> str:
    """Images per second: 1,234; below ten with two digits, as 0.25."""
    return f"{rate:,.0f}" if rate >= 9.95 else f"{rate:.2g}"


def counted(count: int, thing: str, things: str | None = None) -> str:
    """A number of things: 1 image, 1,200 images; `things` is an irregular plural, as classes."""
    return f"{count:,} {thing if count == 1 else things or f'{thing}s'}"


def size(count: float) -> str:
    """A number of bytes with three digits: 132 kB, 1.2 MB, 170 GB."""
    unit = 0
    while count >= 999.5 and unit < 4:
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[unit]}"


def clock(seconds: float) -> str:
    """A duration: 4.2 s, 3 min 20 s, 5 h 12 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def make_console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal; without a terminal so wide that a table's row stays on one line."""
    columns = os.environ.get("COLUMNS", "")
    console = _Console(stderr=stderr, emoji=False)
    if not console.is_terminal and not (columns.isdigit() and int(columns) > 0):
        console = _Console(stderr=stderr, emoji=False, width=PLAIN_WIDTH)
    console.quiet = not stderr and not launch().first
    return console


def plain_console() -> Console:
    """A console as rich makes it, which needs to know nothing of other processes."""
    return _Console()


def write_out(text: str) -> None:
    """Writes text for programs, with its tabs, to standard output. If that is full or closed, as consoles do."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _Console().on_broken_pipe()
    except OSError as error:
        _Console().lose(error)


def printable(text: str) -> str:
    """The text on one line: its control characters are written out. Names of files may contain them."""
    return re.sub(r"[\n\t]", _written_out, harmless(text))


def short(name: str) -> str:
    """A name for people to read: on one line, and not so long that it hides what is beside it."""
    name = printable(name[: LONGEST + 1])
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def shell_words(words: Iterable[str]) -> str:
    """A command as a shell reads it, with as few quotes as it needs."""
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    return f'"{word}"' if "'" in word and not set('"$`\\!') & set(word) else shlex.quote(word)


def harmless(text: str) -> str:
    """The text with all control characters written out but the ends of lines and tabs.

    A terminal obeys some of them: what a file holds could clear the screen, change its title or hide letters.
    """
    return CONTROL.sub(_written_out, text)


def cell_text(text: str) -> str:
    """A text for a cell of a csv, after an apostrophe where a spreadsheet would take it for a formula and run it."""
    return f"'{text}" if text.startswith(FORMULA) and not NUMBER.fullmatch(text) else text


def _written_out(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


class _Console(Console):
    """A console that makes all text harmless; the control characters are rich's own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=harmless(segment.text))

    def on_broken_pipe(self) -> None:
        """A reader that stops early, as `head` does, does not stop the run: what follows goes to /dev/null."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())

    def _check_buffer(self) -> None:
        """Nor does a full disk that the output goes to: what the run learns is worth more than its lines."""
        try:
            super()._check_buffer()
        except OSError as error:
            self._buffer.clear()
            self.lose(error)

    def lose(self, error: OSError) -> None:
        """Goes on without output, and says so once."""
        self.on_broken_pipe()
        LOST.append(error.strerror or str(error))
        if not self.stderr:
            with suppress(OSError):
                sys.stderr.write(f"warning: can't write the output ({LOST[-1]}); going on without it\n")
