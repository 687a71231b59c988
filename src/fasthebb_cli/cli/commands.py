"""Commands that read finished runs and train nothing: `fasthebb COMMAND PATH ... key=value ...`.

They need no composed configuration, so Hydra has no part in them. A new one is a function from paths, settings and a
console, and its entry in COMMANDS.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from fasthebb_cli.console.formats import make_console
from fasthebb_cli.errors import InputError

Command = Callable[[list[Path], dict[str, str], Console], None]


class Setting(NamedTuple):
    """The default value of a key, as text, and its line in --help."""

    default: str
    line: str


@dataclass(frozen=True)
class Usage:
    """A command and what it accepts.

    Args:
        function: module:function, a Command.
        line: what it does, for --help.
        paths: names of its positional arguments, for messages.
        least, most: how many of them it takes.
        keys: its settings.
        example: one call, for --help.
    """

    function: str
    line: str
    paths: str
    least: int
    most: int
    keys: Mapping[str, Setting]
    example: str


MANY = 100_000
_READING = {
    "batch_size": Setting("64", "images that the network sees at once"),
    "device": Setting("auto", "or cpu, cuda, cuda:1, mps, xpu"),
    "workers": Setting("0", "processes that decode ahead; 0: this one does"),
    "trust": Setting("", "code that may build the model's network, my_package.module:function"),
}
COMMANDS: dict[str, Usage] = {
    "predict": Usage(
        "fasthebb_cli.use.predict:predict",
        "classes of a folder's images as a csv: fasthebb predict MODEL FOLDER",
        "MODEL FOLDER", 2, 2,
        {"out": Setting("predictions.csv", "the file, path,class,probability a line")} | _READING,
        "fasthebb predict runs/DIRECTORY photos out=predictions.csv",
    ),
    "features": Usage(
        "fasthebb_cli.use.features:features",
        "a layer's output for a folder's images as an array: fasthebb features MODEL FOLDER layer=conv3",
        "MODEL FOLDER", 2, 2,
        {
            "layer": Setting("", "its name, as conv3; empty: the last before the classifier"),
            "out": Setting("features", "OUT.npy, a row an image, and OUT.txt, their paths"),
            "pool": Setting("4", "maps are averaged to pool x pool at most; 0: they are not"),
        } | _READING,
        "fasthebb features runs/DIRECTORY photos layer=conv3 out=conv3",
    ),
    "report": Usage(
        "fasthebb_cli.report.command:report",
        "tables, curves and one HTML page from finished runs: fasthebb report RUNS ... [out=DIR]",
        "RUNS ...", 1, MANY,
        {"out": Setting("report", "folder of report.html, .md and .csv")},
        "fasthebb report runs out=report",
    ),
    "runs": Usage(
        "fasthebb_cli.report.overview:list_runs",
        "every run with its state and numbers: fasthebb runs [RUNS ...] [state=failed]",
        "[RUNS ...]", 0, MANY,
        {"state": Setting("", "only those: finished, running, failed or stale; empty: all")},
        "fasthebb runs runs state=failed",
    ),
    "compare": Usage(
        "fasthebb_cli.report.comparison:compare",
        "how two runs differ in settings and results: fasthebb compare DIRECTORY DIRECTORY",
        "DIRECTORY DIRECTORY", 2, 2, {},
        "fasthebb compare runs/DIRECTORY runs/OTHER",
    ),
}  # fmt: skip


def run_command(name: str, words: Sequence[str]) -> int:
    """Splits the words into paths and settings, calls the command and returns the exit code 0.

    Raises:
        InputError: there are too few or too many paths, or an unknown setting; or the command raises it.
    """
    usage = COMMANDS[name]
    settings, paths = {key: setting.default for key, setting in usage.keys.items()}, []
    for word in words:
        key, equals, value = word.partition("=")
        if not word:  # else it would be the working directory
            raise InputError(f"an empty word is no path; usage: {usage_line(name)}")
        if equals and key in usage.keys:
            settings[key] = value
        elif word.startswith("-"):
            raise InputError(f"unknown flag {word}; usage: {usage_line(name)}")
        elif equals and not Path(word).exists():
            raise InputError(f"unknown setting {key}; usage: {usage_line(name)}")
        else:
            paths.append(_place(word))
    if not usage.least <= len(paths) <= usage.most:
        raise InputError(f"usage: {usage_line(name)}")
    module, _, function = usage.function.partition(":")
    command: Command = getattr(import_module(module), function)
    command(paths, settings, make_console())
    return 0


def _place(word: str) -> Path:
    """The path. If it doesn't exist and is eight hex digits, the one directory in runs/ whose name ends in them.

    Raises:
        InputError: there are none or several.
    """
    path = Path(word)
    if re.fullmatch("[0-9a-f]{8}", word) and not path.exists():
        found = list(Path("runs").glob(f"*-{word}"))
        if len(found) != 1:
            what = f"{len(found)} directories in runs/ end" if found else "no directory in runs/ ends"
            raise InputError(f"{word}: {what} in these digits; give the path of one, as it stands under where")
        return found[0]
    return path


def usage_line(name: str) -> str:
    usage = COMMANDS[name]
    keys = "".join(f" [{key}={setting.default or 'VALUE'}]" for key, setting in usage.keys.items())
    return f"fasthebb {name} {usage.paths}{keys}"
