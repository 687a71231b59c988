"""The door: `fasthebb VERB key=value ...` -> typed configuration -> pipeline -> exit code. No maths.

Hydra composes the configuration and runs sweeps. Exit codes: 0 done, 1 failed while running, 2 bad input,
130 stopped. Heavy imports wait until a cell really runs, so that help and completion answer at once.
"""

import io
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

import fasthebb_cli
from fasthebb_cli.commands import COMMANDS, run_command
from fasthebb_cli.compose import load, load_bench, load_data
from fasthebb_cli.config import VERBS, DataConfig
from fasthebb_cli.errors import InputError, Interrupted, RunError
from fasthebb_cli.explain import FLAGS, explain, explain_job, help_page, tool_page
from fasthebb_cli.explain import conf_directory as conf_directory
from fasthebb_cli.launch import launch
from fasthebb_cli.run import cells
from fasthebb_cli.run.objective import check_objective, objective_of
from fasthebb_cli.run.wording import make_console, printable
from fasthebb_cli.signals import STOP_SIGNALS, STOPPED, is_submitits, requeue, stop_at_once

if TYPE_CHECKING:
    from fasthebb_cli.run.pipeline import Outcome

TRACEBACK_VARIABLE = "FASTHEBB_TRACEBACK"
EVERY_VERB = (*VERBS, "bench", "data", "cells", *COMMANDS)
OPEN_KEY = r"[\w.]+\.(layer_lr|options|layer_options|teacher_units|optimizer_options)(\.[^=]+)?="  # mappings
HYDRA_FLAGS = ("-m", "--multirun", "--resolve")
CFG, INFO = ("job", "hydra", "all"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
HYDRA_FLAGS_WITH_VALUE: dict[str, tuple[str, ...]] = {  # and what is accepted; empty: anything
    "-c": CFG, "--cfg": CFG, "-i": INFO, "--info": INFO, "-p": (), "--package": (), "-cd": (), "--config-dir": (),
}  # fmt: skip


def main() -> None:
    """Entry point of the command. Outside of a stage, which saves first, a signal ends it at once."""
    for number in STOP_SIGNALS:
        signal.signal(number, stop_at_once)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Does what the arguments say and returns the exit code."""
    if "-sc" in arguments or "--shell-completion" in arguments:
        return _complete(arguments)
    if "--version" in arguments:
        Console().print(f"fasthebb {fasthebb_cli.__version__}", highlight=False)
        return 0
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        tool = next((word for word in arguments[:1] if word in ("bench", "data")), None)
        Console().print(tool_page(conf_directory(), tool) if tool else help_page(conf_directory()), highlight=False)
        return 0
    verb, *rest = arguments
    if verb not in VERBS and not launch().first:  # the rest is done by one process
        return 0
    try:
        if verb == "bench":
            return _run_hydra(_for_hydra(f"what={rest[0]}" if rest else "what=null", rest[1:]), "bench", run_bench)
        if verb == "cells":
            if not rest or rest[0] not in VERBS:
                raise InputError(f"fasthebb cells VERB key=a,b ...: the verb is one of {', '.join(VERBS)}")
            if any(word.startswith("hydra/sweeper=") for word in rest):
                raise InputError("hydra/sweeper: a search makes its cells as it goes, so that they can't be listed")
            words = [*_for_hydra(f"verb={rest[0]}", ["-m", *rest[1:]]), "hydra/launcher=basic"]
            return _run_hydra(words, task=list_cell)
        if verb == "data":
            if not rest or rest[0] not in DataConfig.ACTIONS:
                raise InputError("data needs an action: fasthebb data prepare or fasthebb data info, key=value ...")
            return _run_hydra(_for_hydra(f"what={rest[0]}", rest[1:]), "data", run_data)
        if verb in COMMANDS:
            return _run_command(verb, [word for word in rest if word != "--traceback"], "--traceback" in rest)
        if verb not in VERBS:
            raise InputError(f"unknown verb {verb!r}; choose from: {', '.join(EVERY_VERB)} (see fasthebb --help)")
        return _run_hydra(_for_hydra(f"verb={verb}", rest))
    except InputError as error:
        return _fail(error)


def run_cell(cfg: DictConfig) -> float | None:
    """One cell, in whatever process the launcher gives it. Reports instead of raising, so that a sweep goes on.

    Returns:
        The value of `objective` for a sweeper that searches; None for a failed cell, which is a failed trial.
    """
    code, error, value = 0, "", None
    rows: list[dict[str, Any]] = []
    try:
        rows, value = _do_cell(cfg)
    except Exception as problem:  # noqa: BLE001  the last resort: every failure of a cell becomes its report
        code, error = _fail_together(problem), str(problem) or type(problem).__name__
        if code == STOPPED:
            cells.end_early()
            requeue()
            sys.exit(STOPPED)
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN:
        if launch().first:
            cells.write_cell(
                job.sweep.dir, job.job.num, job.overrides.task, {"code": code, "error": error, "rows": rows}
            )
    elif code:
        sys.exit(code)
    return value


def run_bench(cfg: DictConfig) -> None:
    """`fasthebb bench WHAT`: see conf/bench.yaml."""
    from fasthebb_cli.bench.command import run_bench as measure

    try:
        measure(load_bench(cfg), make_console())
    except Exception as problem:  # noqa: BLE001  as in run_cell
        sys.exit(_fail(problem))


def list_cell(cfg: DictConfig) -> None:
    """One cell's line of `fasthebb cells`."""
    try:
        config = load(cfg)
        from fasthebb_cli.run.listing import cell_line

        sys.stdout.write(cell_line(config, HydraConfig.get().overrides.task) + "\n")
    except Exception as problem:  # noqa: BLE001  as in run_cell
        sys.exit(_fail(problem))


def run_data(cfg: DictConfig) -> None:
    """`fasthebb data WHAT`: see conf/data.yaml."""
    from fasthebb_cli.prepare.command import run_data as do

    try:
        config = load_data(cfg)
        if not any(word.startswith("dataset=") for word in HydraConfig.get().overrides.task):
            raise InputError("dataset has no value: say which, as in dataset=image_folder dataset.root=photos")
        do(config, make_console())
    except Exception as problem:  # noqa: BLE001  as in run_cell
        sys.exit(_fail(problem))


def _run_command(name: str, words: list[str], wants_traceback: bool) -> int:
    if wants_traceback:
        os.environ[TRACEBACK_VARIABLE] = "1"
    try:
        run_command(name, words, make_console())
    except KeyboardInterrupt:
        return STOPPED
    except Exception as problem:  # noqa: BLE001  as in run_cell
        return _fail(problem)
    return 0


def _do_cell(cfg: DictConfig) -> tuple[list[dict[str, Any]], float | None]:
    config = load(cfg)
    check_objective(config)
    yaml = OmegaConf.to_yaml(cfg, resolve=True)
    from fasthebb_cli.run.pipeline import run_cell as run_pipeline
    from fasthebb_cli.run.preview import preview_cell
    from fasthebb_cli.run.view import View

    view = View(make_console())
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN:
        shown = [item.removeprefix("++") for item in job.overrides.task if item.split("=", 1)[0] not in cells.OWN_KEYS]
        view.note(f"cell {job.job.num + 1}: {' '.join(shown)}", "bold")
    if config.dry_run:
        return preview_cell(config, view), None
    outcomes = run_pipeline(config, yaml, view)
    if job.mode == RunMode.RUN:
        view.outcomes([(outcome.stage, outcome.results, outcome.cached) for outcome in outcomes])
    value = None
    if config.objective is not None:
        value = objective_of(config.objective, {outcome.stage.name: outcome.results for outcome in outcomes})
    return [_row(outcome) for outcome in outcomes], value


def _row(outcome: "Outcome") -> dict[str, Any]:
    kept = ("stage", "top1", "top5", "labels_train", "labels_validation", "seconds")
    where = {"cached": outcome.cached, "directory": str(outcome.stage.directory)}
    return {key: outcome.results[key] for key in kept} | where


def _for_hydra(first: str, words: Sequence[str]) -> list[str]:
    """Hydra's command line: its flags first, then the overrides in one piece, which is all that it can read."""
    flags, overrides = [], [first]
    rest = iter(words)
    for word in rest:
        if word == "--dry-run":
            overrides.append("dry_run=true")
        elif word == "--traceback":
            os.environ[TRACEBACK_VARIABLE] = "1"
        elif word in HYDRA_FLAGS:
            flags.append(word)
        elif word in HYDRA_FLAGS_WITH_VALUE:
            value, accepted = next(rest, ""), HYDRA_FLAGS_WITH_VALUE[word]
            if not value or (accepted and value not in accepted):
                raise InputError(f"{word} needs a value" + (f", one of {', '.join(accepted)}" if accepted else ""))
            flags += [word, value]
        elif word.startswith("-"):
            raise InputError(f"unknown flag {word}; settings are key=value (see fasthebb --help)")
        elif not word.strip():
            raise InputError("can't read ''; an override is key=value")
        elif match := re.fullmatch(r"(model|rule|dataset)=([\w.]+:[\w.]+)", word):  # not a file's name
            overrides += [f"{match[1]}=own", f"{match[1]}.name={match[2]}"]
        elif re.match(OPEN_KEY, word):  # Hydra would have them in the group's file already, or with a + before them
            overrides.append(f"++{word}")
        else:
            overrides.append(word)
    if {"-m", "--multirun"} & set(flags) and any(word.startswith("out=") and "," in word for word in overrides):
        raise InputError("out can't be swept: its cells report below one folder")
    return [*flags, *overrides]


def _run_hydra(words: list[str], config: str = "config", task: Callable[[DictConfig], object] | None = None) -> int:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra re-raises what it would otherwise print over several lines
    site = os.environ.get("FASTHEBB_CONF")
    if site and Path(site).is_dir():
        words = [*words, f"hydra.searchpath=[file://{Path(site).resolve()}]"]
    cells.begin()
    if "dry_run=true" in words or not launch().first:  # Hydra makes its folder; these leave nothing behind
        with tempfile.TemporaryDirectory() as folder:
            words = [*words, f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"]
            return _call_hydra(words, config, task or run_cell)
    return _call_hydra(words, config, task or run_cell)


def _call_hydra(words: list[str], config: str, task: Callable[[DictConfig], object]) -> int:
    before, sys.argv = sys.argv, ["fasthebb", *words]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name=config)(task)()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        return STOPPED
    except HydraException as error:  # some are OSErrors too
        return _fail(error, words) if launch().first else _code(error)
    except OSError as error:  # Hydra makes the folder
        return _fail(RunError(f"out: can't use {error.filename} ({error.strerror}); choose another out=DIR"))
    except Exception as error:  # noqa: BLE001  the door: everything becomes an exit code
        return _fail(RunError(explain_job(str(error))) if is_submitits(error) else error, words)
    finally:
        sys.argv = before
    return 0


def _fail(error: Exception, words: Sequence[str] = ()) -> int:
    """Prints one line and gives the exit code; a traceback only when asked for or when the fault is ours."""
    console = make_console(stderr=True)
    if isinstance(error, Interrupted):
        console.print(
            f"stopped and saved at {error}; the same command goes on from there", style="yellow", soft_wrap=True
        )
        return STOPPED
    if os.environ.get(TRACEBACK_VARIABLE) or not _is_known(error):
        traceback.print_exception(error)
    text = explain(error, words, conf_directory())
    who = "" if launch().first else f"process {launch().rank}: "
    console.print(f"[bold red]error:[/] {who}{escape(printable(text))}", highlight=False, soft_wrap=True)
    return _code(error)


def _code(error: Exception) -> int:
    return 2 if _is_known(error) and not isinstance(error, RunError) else 1


def _is_known(error: Exception) -> bool:
    """Bad input or a failure with words of its own; the rest are faults of ours."""
    return isinstance(error, InputError | RunError | HydraException | OmegaConfBaseException) or _is_hydras(error)


def _fail_together(error: Exception) -> int:
    """As _fail; of several processes that fail together one speaks, and one that fails alone takes the others down."""
    if launch().size == 1:
        return _fail(error)
    from fasthebb_cli.processes import PeerFailed, PeerLost, tell_failure

    if isinstance(error, Interrupted):
        return _fail(error) if launch().first else STOPPED
    try:
        if isinstance(error, PeerLost):
            raise error
        return _fail(error) if not isinstance(error, PeerFailed) and tell_failure() else _code(error)
    except PeerLost:
        code = _fail(error)
        sys.stderr.flush()
        os._exit(code)  # not even exit handlers: they would wait for the others


def _is_hydras(error: Exception) -> bool:
    """Hydra raises a bare ValueError for `group=null`."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError) and bool(frames) and f"{os.sep}hydra{os.sep}" in frames[-1].filename


def _complete(arguments: list[str]) -> int:
    """Shell completion: verbs ourselves, the rest by Hydra, from whose sight the verb is taken."""
    if any(word.startswith("query") for word in arguments):
        command, _, rest = os.environ.get("COMP_LINE", "").lstrip().partition(" ")
        _, space, tail = rest.lstrip().partition(" ")
        if not space:
            Console().print(
                " ".join([*VERBS, "bench", "data", "cells", *COMMANDS, "--help", "--version"]),
                soft_wrap=True,
                highlight=False,
            )
            return 0
        if tail.split(" ")[-1].startswith("-"):
            Console().print(" ".join(flag.split()[0] for flag, _ in FLAGS), soft_wrap=True, highlight=False)
            return 0
        os.environ["COMP_LINE"] = f"{command} {tail.lstrip()}"
    return _run_hydra(arguments)
