"""Runs one cell: its stages in order.

config -> dataset -> plan -> validate -> for each stage: lock, run_stage -> outcomes
"""

from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from fasthebb_cli.compute import processes
from fasthebb_cli.compute.device import set_up
from fasthebb_cli.console.view import View
from fasthebb_cli.data.source import InMemory
from fasthebb_cli.errors import InputError
from fasthebb_cli.run.dataset import open_dataset
from fasthebb_cli.run.directory import locked
from fasthebb_cli.run.own_source import own_sources
from fasthebb_cli.run.plan import PlannedStage, plan
from fasthebb_cli.run.stage import Cell, Outcome, run_stage
from fasthebb_cli.run.validate import check
from fasthebb_cli.settings.config import Config


def run_cell(config: Config, yaml: str, view: View) -> list[Outcome]:
    """Runs or reuses every stage that the cell asks for.

    Args:
        yaml: the composed configuration, kept in each stage's directory.

    Raises:
        InputError, RunError, Interrupted: as the stages do; what was finished or saved stays.
    """
    processes.join()
    compute = set_up(config.gpu)
    view.note(f"{config.dataset.name} on {compute.describe()}")
    dataset = open_dataset(config.dataset, config.seed, view)
    if isinstance(dataset.source, InMemory):
        dataset = replace(dataset, source=dataset.source.to(compute.device))
    stages = plan(config, dataset)
    view.unread(own_sources(config))
    if processes.from_first(lambda: [stage.fingerprint for stage in stages]) != [stage.fingerprint for stage in stages]:
        raise InputError("has other settings or images than the first process; a search runs in one process a trial")
    check(config, dataset, stages)
    processes.meet()  # nobody begins before all agree
    cell = Cell(config, yaml, dataset, compute, view)
    outcomes = []
    with ExitStack() as locks:
        for stage in stages:
            if stage.wanted and not stage.settings.pretrains and processes.is_first():
                locks.enter_context(locked(stage.directory))  # a shared pre-training is waited for, a cell is not
        for stage in stages:
            if not stage.wanted:
                _require(stage, config)
                continue
            with ExitStack() as lock:
                if stage.settings.pretrains and processes.is_first():
                    lock.enter_context(locked(stage.directory, partial(_say_waiting, view, stage)))
                outcomes.append(run_stage(cell, stage))
    return outcomes


def _require(stage: PlannedStage, config: Config) -> None:
    if not stage.finished:
        raise InputError(
            f"{stage.name} is not finished at {stage.directory}; run it first with the same settings: "
            f"fasthebb {stage.kind} ..., or all of it with fasthebb train ..., or name weights with init_from="
        )


def _say_waiting(view: View, stage: PlannedStage, holder: str) -> None:
    view.note(f"{stage.name} is being done by {holder}; waiting for it ({stage.directory})")
