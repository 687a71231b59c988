"""The door: `fasthebb VERB word ...` -> the verb's function -> exit code 0 done, 1 failed, 2 bad input, 130 stopped.

A new verb is an entry in VERBS; one that only reads finished runs or a model is an entry in COMMANDS of commands.py.
The stages that a verb runs by default are in `STAGES_OF_VERB` of settings/stages.py.
Functions are named as module:function and imported when they are called, so that help and completion answer at once.
"""

import io
import logging
import os
import signal
import sys
from importlib import import_module
from typing import NamedTuple

from fasthebb_cli import __version__
from fasthebb_cli.cli.commands import COMMANDS
from fasthebb_cli.cli.complete import complete
from fasthebb_cli.cli.failures import TRACEBACK_VARIABLE, fail
from fasthebb_cli.cli.help import FLAGS, page
from fasthebb_cli.cli.imports import importing
from fasthebb_cli.compute.launch import launch
from fasthebb_cli.compute.signals import STOP_SIGNALS, STOPPED, stop_at_once
from fasthebb_cli.compute.threads import spin_briefly
from fasthebb_cli.console.formats import LOST, plain_console
from fasthebb_cli.errors import InputError


class Verb(NamedTuple):
    """What a verb does.

    Args:
        function: module:function, from the verb and the words after it to the exit code.
        line: its line in --help.
        by_all: every process of a run does it together; otherwise the first one alone.
    """

    function: str
    line: str
    by_all: bool = False


TRAIN = "fasthebb_cli.cli.train:train"
VERBS: dict[str, Verb] = {
    "train": Verb(TRAIN, "pre-train, fine-tune and evaluate", by_all=True),
    "pretrain": Verb(TRAIN, "learn features from all training images, without labels", by_all=True),
    "finetune": Verb(TRAIN, "learn to classify from the labelled fraction", by_all=True),
    "probe": Verb(
        TRAIN, "what every layer knows: linear classifiers, k-NN, SVM and retrieval on frozen features", by_all=True
    ),
    "evaluate": Verb(TRAIN, "accuracy on the test images", by_all=True),
    "advise": Verb(
        "fasthebb_cli.cli.advise:advise",
        "which way to learn pays on your images, within minutes: fasthebb advise dataset=... label_fraction=...",
    ),
    "cells": Verb(
        "fasthebb_cli.cli.tools:cells",
        "a sweep's cells, a command a line, for scripts/sweep.sh: fasthebb cells train key=a,b ...",
    ),
    "bench": Verb(
        "fasthebb_cli.cli.tools:bench",
        "speed and memory: step, layer, scale, traffic, data, run or readout (conf/bench.yaml has the keys)",
    ),
    "data": Verb(
        "fasthebb_cli.cli.tools:data",
        "check and pack images, or say what is in a data set: fasthebb data prepare or info (conf/data.yaml)",
    ),
    **{name: Verb("fasthebb_cli.cli.commands:run_command", command.line) for name, command in COMMANDS.items()},
}


# Of processes that clear away what a stopped run with workers left; they tell of it, and Python and joblib start them
QUIET = "ignore:resource_tracker:UserWarning"


def main() -> None:
    """Entry point of the command. Outside of a stage, which saves first, a signal ends it at once."""
    spin_briefly()
    logging.raiseExceptions = False  # else each line that Hydra or a launcher logs to a closed output is a traceback
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), QUIET)))
    for number in STOP_SIGNALS:
        signal.signal(number, stop_at_once)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:]))


def _check_place() -> None:
    """Raises:
    InputError: the working directory was deleted.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise InputError(f"the working directory is gone ({error.strerror}); go to one that is there") from error


def run(arguments: list[str]) -> int:
    """Does what the arguments say and returns the exit code."""
    if "-sc" in arguments or "--shell-completion" in arguments:
        return complete(arguments, VERBS, [flag.split()[0] for flag, _ in FLAGS])
    if "--version" in arguments:
        plain_console().print(f"fasthebb {__version__}", highlight=False)
        return min(len(LOST), 1)
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        lines = {name: verb.line for name, verb in VERBS.items()}
        plain_console().print(page(arguments[0] if arguments else "", lines), highlight=False)
        return min(len(LOST), 1)
    try:
        is_first = launch().first
    except InputError as error:  # printed here: `fail` asks which process it speaks for
        sys.stderr.write(f"error: {error}\n")
        return 2
    if "--traceback" in arguments:
        os.environ[TRACEBACK_VARIABLE] = "1"
    name, *words = [word for word in arguments if word != "--traceback"] or [""]
    try:
        _check_place()
        if name not in VERBS:
            raise InputError(f"unknown verb {name!r}; choose from: {', '.join(VERBS)} (see fasthebb --help)")
        verb = VERBS[name]
        if not verb.by_all and not is_first:
            return 0
        module, _, function = verb.function.partition(":")
        with importing():
            do = getattr(import_module(module), function)
        code: int = do(name, words)
    except KeyboardInterrupt:
        return STOPPED
    except Exception as error:  # noqa: BLE001  the door: everything becomes a line and an exit code
        if isinstance(error, InputError) and not is_first:
            return 2  # all processes have the same words; the first one speaks
        return fail(error)
    return 1 if LOST and not verb.by_all else code  # a run's results are in its directories
