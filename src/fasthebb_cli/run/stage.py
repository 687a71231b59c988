"""Runs one stage of a cell: reused when finished, resumed when begun, else started from the weights before it.

directory -> checkpoint -> network -> task -> steps -> model file and results.json
"""

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from fasthebb_cli.compute import processes
from fasthebb_cli.compute.seeds import derived_seed
from fasthebb_cli.errors import Interrupted
from fasthebb_cli.run.checkpoint import find_checkpoint, load_checkpoint
from fasthebb_cli.run.directory import MODEL_FILE
from fasthebb_cli.run.failure import explained_failures
from fasthebb_cli.run.loop import Position, Session, restore, run_task
from fasthebb_cli.run.opening import open_directory
from fasthebb_cli.run.plan import PlannedStage
from fasthebb_cli.run.record import Record, open_log
from fasthebb_cli.run.results import keep_results, results_of
from fasthebb_cli.run.shared import Cell
from fasthebb_cli.run.start import start_of
from fasthebb_cli.stages import STAGES, Context


@dataclass(frozen=True)
class Outcome:
    """A finished stage. cached: its results were there already."""

    stage: PlannedStage
    results: dict[str, Any]
    cached: bool


def run_stage(cell: Cell, stage: PlannedStage) -> Outcome:
    """Reuses or runs the stage.

    Of several processes the first alone reads and writes the stage's directory, with two exceptions: all read the
    checkpoint, and a process that fails writes error.txt.

    Raises:
        InputError, RunError: the stage failed.
        Interrupted: a signal stopped it, and a checkpoint or the results are saved.
    """
    finished = processes.from_first(lambda: open_directory(cell, stage))
    if finished is not None:
        cell.view.skipped(stage, finished)
        if "weights" in finished and not (stage.directory / MODEL_FILE).exists():
            cell.view.warn(f"{stage.directory / MODEL_FILE} is gone; delete the directory to make it again")
        return Outcome(stage, finished, cached=True)
    if processes.is_first():
        cell.view.log = open_log(stage.directory)
    try:
        with explained_failures(cell, stage):
            return Outcome(stage, _run(cell, stage), cached=False)
    finally:
        cell.view.log = None


def _run(cell: Cell, stage: PlannedStage) -> dict[str, Any]:
    """Does what is left of the stage and returns its results."""
    config, view, directory = cell.config, cell.view, stage.directory
    found = processes.from_first(lambda: find_checkpoint(directory, view.warn))
    state = load_checkpoint(found, stage.fingerprint) if found is not None else None
    network, start = start_of(cell, stage)
    rank = (processes.rank(),) if processes.rank() else ()  # each process has a dropout of its own
    torch.manual_seed(derived_seed(config.seed, stage.name, *rank))
    task = STAGES[stage.kind](
        Context(
            config, stage.name, stage.settings, cell.dataset, network, cell.compute, start.statistics,
            untrained=start.untrained, resumed=state is not None,
        )
    )  # fmt: skip
    position = restore(task, network, state, found) if state is not None else Position()
    session = Session(directory, stage.fingerprint, {"yaml": cell.yaml}, cell.compute)
    record = Record(directory if processes.is_first() else None, position.records)
    with closing(record), view.stage(stage, task, position) as display:
        run_task(task, network, position, session, record, display)
    measured = task.finish(position.records[-1] if position.records else {})
    if stage.settings.measures:  # it reports the labels that the network has seen in all stages
        for name, seen in (("labels_train", start.labels_train), ("labels_validation", start.labels_validation)):
            measured[name] = max(measured[name], seen)

    def keep() -> dict[str, Any]:
        epochs = len(position.records)
        if epochs < task.epochs:
            view.note(f"{stage.name}: ended after {epochs} of {task.epochs} epochs: {task.ended()}")
        results = results_of(cell, stage, task, position, measured)
        keep_results(cell, stage, network, start, results)
        view.finished(stage, results)
        return results

    results = processes.from_first(keep)
    if position.stopped:
        raise Interrupted("the end")
    return results
