"""`fasthebb advise key=value ...`: which way to learn pays on these images, within a time limit?

Each way of conf/advise.yaml runs as a cell of `fasthebb train` would, so that it is resumed, and reused by later runs.
All are judged within the budget's labels, and no validation or test image is looked at:

* Fine-tuning in closed form says what it expects, by leaving out one labelled image after the other.
* Others learn without a fold of the labelled images (`leave_out`) and are scored on it, fold after fold.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from fasthebb_cli.cli.cell import make_folder
from fasthebb_cli.cli.compose import compose_one
from fasthebb_cli.cli.words import read_words
from fasthebb_cli.compute.launch import launch
from fasthebb_cli.compute.signals import late_stop
from fasthebb_cli.console.formats import clock, counted, make_console, percent, shell_words
from fasthebb_cli.console.tables import plain_table
from fasthebb_cli.errors import InputError, Interrupted, RunError
from fasthebb_cli.settings.conf import conf_directory
from fasthebb_cli.settings.load import completed, load

OWN = ("minutes", "folds", "ways")
SET_HERE = ("rule", "finetune", "stages", "leave_out", "evaluate", "verb", "force", "dry_run", "objective")
NORMAL = 1.96  # standard errors in half of a 95 % interval


@dataclass
class Way:
    """A way to learn, and what has been found of it.

    Args:
        words: of `fasthebb train`, without the user's.
        hits, judged: labelled images that were scored right, and that were scored, when they were left out.
        folds: how many were scored; 0: one image after the other was left out.
        problem: why it was not judged, or not by all folds; bad_input: what the user gave is the reason.
    """

    name: str
    words: list[str]
    hits: float = 0.0
    judged: int = 0
    folds: int = 0
    seconds: float = 0.0
    problem: str = ""
    bad_input: bool = False
    chosen: dict[str, Any] = field(default_factory=dict)

    @property
    def top1(self) -> float:
        return self.hits / self.judged

    @property
    def margin(self) -> float:
        """Half of the 95 % interval of top1; with one added right and one wrong, so that it is never 0."""
        share = (self.hits + 1) / (self.judged + 2)
        return NORMAL * math.sqrt(share * (1 - share) / self.judged)


def advise(verb: str, words: Sequence[str]) -> int:
    """Tries each way, prints a table with the commands to run, and returns the exit code.

    Raises:
        InputError: bad words, several processes, or no way can be tried with what is given.
        RunError: every way failed, or none was finished in time.
    """
    began = time.monotonic()
    minutes, folds, ways, given = _settings(words)
    if launch().size > 1:
        raise InputError("fasthebb advise runs in one process; leave out torchrun or srun")
    console = make_console()
    end = began + 60 * minutes
    for way in ways:
        try:
            load(_composed(way, given))
        except InputError as error:
            way.problem, way.bad_input = str(error), True
    _end_on_bad_input(ways)
    for number, way in enumerate(ways, 1):
        if way.problem or time.monotonic() >= end:
            way.problem = way.problem or "no time left"
            continue
        console.print(f"\nway {number} of {len(ways)}: {escape(way.name)}", style="bold", highlight=False)
        _try(way, given, folds, end)
    _end_on_bad_input(ways)
    _print(console, ways, given, minutes)
    if not any(way.judged for way in ways):
        raise RunError("no way was judged; the table says why")
    return 0


def _end_on_bad_input(ways: Sequence[Way]) -> None:
    """Where no way can be tried, the first one's reason is the error.

    Raises:
        InputError: so it is.
    """
    if all(way.bad_input for way in ways):
        raise InputError(ways[0].problem)


def _settings(words: Sequence[str]) -> tuple[float, int, list[Way], list[str]]:
    """Minutes, folds, the ways to try, and the words that all of them get.

    Raises:
        InputError: a value is out of range, or a word sets what the ways set.
    """
    conf: Any = OmegaConf.load(conf_directory() / "advise.yaml")
    own = {name: str(conf[name]) for name in OWN}
    given: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in own:
            own[key] = value
        elif key in SET_HERE:
            raise InputError(f"{key}: fasthebb advise sets it itself; ways=... chooses among the ways to learn")
        elif word.startswith("-"):
            raise InputError(f"unknown flag {word}; usage: fasthebb advise dataset=... [minutes=5] key=value ...")
        else:
            given.append(word)
    choices = {str(name): [str(word) for word in words] for name, words in conf.choices.items()}
    names = list(choices) if own["ways"] == "all" else own["ways"].strip("[]").split(",")
    for name in names:
        if name not in choices:
            raise InputError(f"ways: unknown {name!r}; choose from: {', '.join(choices)}")
    minutes, folds = _number("minutes", own["minutes"], 0.01), _number("folds", own["folds"], 2)
    return minutes, int(folds), [Way(name, choices[name]) for name in names], given


def _number(name: str, text: str, least: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= 1e6:
        raise InputError(f"{name} must be a number from {least:g} on, not {text!r}")
    return value


def _try(way: Way, given: Sequence[str], folds: int, end: float) -> None:
    """Runs what is left of a way until the time is up. What fails becomes its `problem`."""
    try:
        with late_stop(max(end - time.monotonic(), 0.01)):
            for results in _cells(way, given, folds):
                _add(way, results)
    except Interrupted:
        if time.monotonic() < end:
            raise  # the user stopped it
        left = counted(folds - way.folds, "fold")
        way.problem = f"no time for {left}" if way.judged else "not finished in time"
    except (InputError, RunError) as error:
        way.problem, way.bad_input = str(error).splitlines()[0], isinstance(error, InputError)


def _cells(way: Way, given: Sequence[str], folds: int) -> Iterator[dict[str, dict[str, Any]]]:
    """The results by stage of each cell that the way takes: one, or one for each fold."""
    cfg = _composed(way, given, "stages=[pretrain,finetune]")
    if load(cfg).settings["finetune"].readout.closed is not None:
        yield _run(cfg)
        return
    for fold in range(1, folds + 1):
        more = (f"leave_out={fold}/{folds}", "evaluate=left_out", "stages=[pretrain,finetune,evaluate]")
        yield _run(_composed(way, given, *more))


def _words(way: Way, given: Sequence[str]) -> list[str]:
    """What runs is what is told: the user's words, and those of the way whose keys the user does not set."""
    own = {word.partition("=")[0].lstrip("+") for word in given}
    return [*given, *(word for word in way.words if word.partition("=")[0] not in own)]


def _composed(way: Way, given: Sequence[str], *more: str) -> DictConfig:
    return compose_one(read_words("config", "verb=train", [*_words(way, given), *more]))


def _run(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    from fasthebb_cli.console.view import View  # torch is loaded here, after bad input has been found
    from fasthebb_cli.run.cell import run_cell

    config = load(cfg)
    make_folder(config.out)
    outcomes = run_cell(config, OmegaConf.to_yaml(completed(cfg), resolve=True), View(make_console(), brief=True))
    return {outcome.stage.name: outcome.results for outcome in outcomes}


def _add(way: Way, results: dict[str, dict[str, Any]]) -> None:
    """Adds a cell's results to what is known of the way."""
    way.seconds += sum(stage["seconds"] for stage in results.values())
    if "evaluate" in results:
        count = results["evaluate"]["samples"]
        way.hits, way.judged = way.hits + results["evaluate"]["top1"] * count, way.judged + count
        way.folds += 1
        return
    tuned = results["finetune"]
    way.judged = tuned["labels_judged"]
    way.hits, way.chosen = tuned["expected_top1"] * way.judged, tuned["chosen"]


def _print(console: Console, ways: Sequence[Way], given: Sequence[str], minutes: float) -> None:
    table = plain_table()
    table.add_column("way", no_wrap=True)
    for name in ("expected top-1 %", "95 %", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("judged by", overflow="fold")
    for way in sorted(ways, key=lambda way: -way.top1 if way.judged else 1):
        if not way.judged:
            table.add_row(escape(way.name), "", "", "", escape(way.problem))
            continue
        how = counted(way.folds, "fold") if way.folds else "leaving one out"
        chosen = f"; {way.chosen['classifier']}" if way.chosen else ""
        table.add_row(
            escape(way.name), percent(way.top1), f"± {percent(way.margin)}", clock(way.seconds),
            f"{way.judged:,} labels, {how}{chosen}" + (f"; {escape(way.problem)}" if way.problem else ""),
        )  # fmt: skip
    console.print()
    console.print(table)
    known = {way.name: way for way in ways if way.judged}
    if not known:
        return
    best = max(known.values(), key=lambda way: way.top1)
    console.print()
    for line in _sentences(best, known):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(escape(f"  {command(best, given)}"), soft_wrap=True, highlight=False, style="bold")
    others = [way for way in ways if way is not best]
    if others:
        console.print("the others:", style="dim")
        for way in others:
            console.print(escape(f"  {command(way, given)}"), soft_wrap=True, highlight=False, style="dim")
    if any("time" in way.problem for way in ways):
        console.print(f"The same command with minutes={2 * minutes:g} goes on where this one stopped.", style="dim")


def _sentences(best: Way, known: dict[str, Way]) -> Iterator[str]:
    """What follows from the table."""
    what = "no backward pass" if best.chosen else "backprop"
    yield f"Best: {best.name} ({what}), {percent(best.top1)} ± {percent(best.margin)} % expected on new images."
    for name, text in (("scratch", "training from scratch"), ("random", "random filters, which learn nothing")):
        other = known.get(name)
        if other is None or other is best:
            continue
        gain = best.top1 - other.top1
        near = gain < math.hypot(best.margin, other.margin)
        doubt = "; so few labels can't tell whether that is chance" if near else ""
        yield f"That is {percent(gain)} points above {text}{doubt}."


def command(way: Way, given: Sequence[str]) -> str:
    """The command that runs a way on all labels of the budget."""
    return shell_words(["fasthebb", "train", *_words(way, given)])
