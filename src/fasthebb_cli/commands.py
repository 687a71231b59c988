"""Commands that read what runs have left behind and train nothing: `fasthebb COMMAND PATH ... key=value ...`.

They need no composed configuration, so Hydra has no part in them. To add one: an entry in COMMANDS and its line in
explain.VERB_LINES.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from rich.console import Console

from fasthebb_cli.errors import InputError

Command = Callable[[list[Path], dict[str, str], Console], None]


@dataclass(frozen=True)
class Usage:
    """A command's function, as module:function, and what it accepts.

    Args:
        paths: what its positional arguments are, for messages.
        least, most: how many of them.
        keys: settings with their default values, as text.
    """

    function: str
    paths: str
    least: int
    most: int
    keys: Mapping[str, str]


MANY = 100_000
_READING = {"batch_size": "64", "device": "auto", "workers": "0"}
COMMANDS: dict[str, Usage] = {
    "predict": Usage("fasthebb_cli.use.predict:predict", "MODEL FOLDER", 2, 2, {"out": "predictions.csv"} | _READING),
    "features": Usage(
        "fasthebb_cli.use.features:features", "MODEL FOLDER", 2, 2,
        {"layer": "", "out": "features", "pool": "4"} | _READING,
    ),
    "report": Usage("fasthebb_cli.report.command:report", "RUNS ...", 1, MANY, {"out": "report"}),
    "runs": Usage("fasthebb_cli.report.overview:list_runs", "[RUNS ...]", 0, MANY, {"state": ""}),
    "compare": Usage("fasthebb_cli.report.comparison:compare", "DIRECTORY DIRECTORY", 2, 2, {}),
}  # fmt: skip


def run_command(name: str, words: Sequence[str], console: Console) -> None:
    """Takes the words apart, checks them and calls the command.

    Raises:
        InputError: too few or too many paths, or a setting that the command doesn't have.
    """
    usage = COMMANDS[name]
    settings, paths = dict(usage.keys), []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in usage.keys:
            settings[key] = value
        elif word.startswith("-"):
            raise InputError(f"unknown flag {word}; usage: {usage_line(name)}")
        elif equals and not Path(word).exists():
            raise InputError(f"unknown setting {key}; usage: {usage_line(name)}")
        else:
            paths.append(Path(word))
    if not usage.least <= len(paths) <= usage.most:
        raise InputError(f"usage: {usage_line(name)}")
    module, _, function = usage.function.partition(":")
    command: Command = getattr(import_module(module), function)
    command(paths, settings, console)


def usage_line(name: str) -> str:
    usage = COMMANDS[name]
    keys = "".join(f" [{key}={value or 'VALUE'}]" for key, value in usage.keys.items())
    return f"fasthebb {name} {usage.paths}{keys}"
