"""Runs one cell: its stages in order.

config -> dataset -> planned and validated stages -> for each: lock, run_stage -> outcomes
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
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
from fasthebb_cli.run.plan import PlannedStage
from fasthebb_cli.run.shared import Cell
from fasthebb_cli.run.stage import Outcome, run_stage
from fasthebb_cli.run.validate import planned
from fasthebb_cli.settings.config import Config


def run_cell(config: Config, yaml: str, view: View) -> list[Outcome]:
    """Runs every stage that the cell asks for, or reuses it where it is finished.

    Args:
        yaml: the composed configuration; each stage's directory gets a copy.

    Raises:
        InputError, RunError, Interrupted: as the stages do; what they finished or saved stays.
    """
    processes.join()
    compute = set_up(config.gpu)
    view.note(f"{config.dataset.name} on {compute.describe()}")
    dataset = open_dataset(config.dataset, config.seed, view, config.labelled)
    if isinstance(dataset.source, InMemory):
        dataset = replace(dataset, source=dataset.source.to(compute.device))
    dataset, stages = planned(config, dataset)
    view.unread(own_sources(config))
    _agree(stages)
    processes.meet()  # no process begins before all have validated
    cell = Cell(config, yaml, dataset, compute, view)
    with ExitStack() as locks:
        for stage in stages:
            if stage.wanted and not stage.settings.shared:
                locks.enter_context(_lock(stage))
        return [outcome for stage in stages if (outcome := _run(cell, stage)) is not None]


def _agree(stages: list[PlannedStage]) -> None:
    """All processes plan the same stages."""
    fingerprints = [stage.fingerprint for stage in stages]
    if processes.from_first(lambda: fingerprints) != fingerprints:
        raise InputError("has other settings or images than the first process; a search runs in one process a trial")


def _run(cell: Cell, stage: PlannedStage) -> Outcome | None:
    """The outcome of a stage; None of one that the cell only needs and that is finished."""
    if not stage.wanted:
        _require(stage)
        return None
    if not stage.settings.shared:
        return run_stage(cell, stage)
    with _lock(stage, on_wait=partial(_say_waiting, cell.view, stage)):
        return run_stage(cell, stage)


def _lock(stage: PlannedStage, on_wait: Callable[[str], None] | None = None) -> AbstractContextManager[None]:
    """The first process holds the lock of a stage's directory.

    Cells share some stages, so one cell waits for the other. Any other stage belongs to one cell, so its lock, held
    by another run, is an error.
    """
    return locked(stage.directory, on_wait) if processes.is_first() else nullcontext()


def _require(stage: PlannedStage) -> None:
    if not stage.finished:
        raise InputError(
            f"{stage.name} is not finished at {stage.directory}; run it first with the same settings: "
            f"fasthebb {stage.configured} ..., or all of it with fasthebb train ..., or name weights with init_from="
        )


def _say_waiting(view: View, stage: PlannedStage, holder: str) -> None:
    view.note(f"{stage.name} is being done by {holder}; waiting for it ({stage.directory})")
