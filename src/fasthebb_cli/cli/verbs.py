"""The door: `fasthebb VERB key=value ...` -> typed configuration -> pipeline -> exit code. No maths.

Hydra composes the configuration and runs sweeps. Exit codes: 0 done, 1 failed while running, 2 bad input,
130 stopped. Heavy imports wait until a cell really runs, so that help and completion answer at once.
"""

import io
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console, Group

from fasthebb_cli import __version__
from fasthebb_cli.cli import sweep
from fasthebb_cli.cli.commands import COMMANDS, run_command
from fasthebb_cli.cli.failures import TRACEBACK_VARIABLE, fail, fail_together
from fasthebb_cli.cli.help import FLAGS, command_page, help_page, tool_page
from fasthebb_cli.cli.hydra_call import for_hydra, here_and_now, run_hydra
from fasthebb_cli.cli.objective import check_objective, objective_of
from fasthebb_cli.compute.launch import launch
from fasthebb_cli.compute.signals import STOP_SIGNALS, STOPPED, requeue, stop_at_once
from fasthebb_cli.compute.threads import spin_briefly
from fasthebb_cli.console.formats import make_console
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.conf import conf_directory
from fasthebb_cli.settings.load import completed, load, load_bench, load_data
from fasthebb_cli.settings.stages import VERBS
from fasthebb_cli.settings.tools import DataConfig

if TYPE_CHECKING:
    from fasthebb_cli.run.stage import Outcome

EVERY_VERB = (*VERBS, "bench", "data", "cells", *COMMANDS)


def main() -> None:
    """Entry point of the command. Outside of a stage, which saves first, a signal ends it at once."""
    spin_briefly()
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
        Console().print(f"fasthebb {__version__}", highlight=False)
        return 0
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        Console().print(_help(arguments[0] if arguments else ""), highlight=False)
        return 0
    try:
        launch()
    except InputError as error:  # said here, as `fail` asks which process it speaks for
        sys.stderr.write(f"error: {error}\n")
        return 2
    verb, *rest = arguments
    if verb not in VERBS and not launch().first:  # the rest is done by one process
        return 0
    try:
        if verb == "bench":
            return run_hydra(bench_job, for_hydra(f"what={rest[0]}" if rest else "what=null", rest[1:]), "bench")
        if verb == "cells":
            if not rest or rest[0] not in VERBS:
                raise InputError(f"fasthebb cells VERB key=a,b ...: the verb is one of {', '.join(VERBS)}")
            words = here_and_now(for_hydra(f"verb={rest[0]}", ["-m", *rest[1:]]), "fasthebb cells")
            return run_hydra(cells_job, words)
        if verb == "data":
            if not rest or rest[0] not in DataConfig.ACTIONS:
                raise InputError("data needs an action: fasthebb data prepare or fasthebb data info, key=value ...")
            return run_hydra(data_job, for_hydra(f"what={rest[0]}", rest[1:]), "data")
        if verb in COMMANDS:
            return _run_command(verb, [word for word in rest if word != "--traceback"], "--traceback" in rest)
        if verb not in VERBS:
            raise InputError(f"unknown verb {verb!r}; choose from: {', '.join(EVERY_VERB)} (see fasthebb --help)")
        return run_hydra(cell_job, for_hydra(f"verb={verb}", rest))
    except InputError as error:
        return fail(error)


def cell_job(cfg: DictConfig) -> float | None:
    """One cell, in whatever process the launcher gives it. Reports instead of raising, so that a sweep goes on.

    Returns:
        The value of `objective` for a sweeper that searches; None for a failed cell, which is a failed trial.
    """
    code, error, value = 0, "", None
    rows: list[dict[str, Any]] = []
    try:
        rows, value = _do_cell(cfg)
    except Exception as problem:  # noqa: BLE001  the last resort: every failure of a cell becomes its report
        code, error = fail_together(problem), str(problem) or type(problem).__name__
        if code == STOPPED:
            sweep.end_early()
            requeue()
            sys.exit(STOPPED)
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN:
        if launch().first:
            sweep.write_cell(
                job.sweep.dir, job.job.num, job.overrides.task, {"code": code, "error": error, "rows": rows}
            )
    elif code:
        sys.exit(code)
    return value


def bench_job(cfg: DictConfig) -> None:
    """`fasthebb bench WHAT`: see conf/bench.yaml."""
    from fasthebb_cli.bench.command import run_bench

    try:
        run_bench(load_bench(cfg), make_console())
    except Exception as problem:  # noqa: BLE001  as in cell_job
        sys.exit(fail(problem))


def cells_job(cfg: DictConfig) -> None:
    """One cell's line of `fasthebb cells`."""
    try:
        config = load(cfg)
        from fasthebb_cli.cli.cells import cell_line

        sys.stdout.write(cell_line(config, HydraConfig.get().overrides.task) + "\n")
    except Exception as problem:  # noqa: BLE001  as in cell_job
        sys.exit(fail(problem))


def data_job(cfg: DictConfig) -> None:
    """`fasthebb data WHAT`: see conf/data.yaml."""
    from fasthebb_cli.prepare.command import run_data

    try:
        config = load_data(cfg)
        if not any(word.startswith("dataset=") for word in HydraConfig.get().overrides.task):
            raise InputError("dataset has no value: say which, as in dataset=image_folder dataset.root=photos")
        run_data(config, make_console())
    except Exception as problem:  # noqa: BLE001  as in cell_job
        sys.exit(fail(problem))


def _help(verb: str) -> Group:
    if verb in COMMANDS:
        return command_page(verb)
    return tool_page(conf_directory(), verb) if verb in ("bench", "data") else help_page(conf_directory())


def _run_command(name: str, words: list[str], wants_traceback: bool) -> int:
    if wants_traceback:
        os.environ[TRACEBACK_VARIABLE] = "1"
    try:
        run_command(name, words, make_console())
    except KeyboardInterrupt:
        return STOPPED
    except Exception as problem:  # noqa: BLE001  as in cell_job
        return fail(problem)
    return 0


def _do_cell(cfg: DictConfig) -> tuple[list[dict[str, Any]], float | None]:
    config = load(cfg)
    check_objective(config)
    yaml = OmegaConf.to_yaml(completed(cfg), resolve=True)
    from fasthebb_cli.cli.dry_run import preview_cell
    from fasthebb_cli.console.view import View
    from fasthebb_cli.run.cell import run_cell

    view = View(make_console())
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN:
        shown = [item.removeprefix("++") for item in job.overrides.task if item.split("=", 1)[0] not in sweep.OWN_KEYS]
        view.note(f"cell {job.job.num + 1}: {' '.join(shown)}", "bold")
    if config.dry_run:
        return preview_cell(config, view), None
    outcomes = run_cell(config, yaml, view)
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
    return run_hydra(cell_job, arguments)
