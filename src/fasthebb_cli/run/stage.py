"""Runs one stage of a cell: skipped when finished, resumed when begun, and handed the weights before it.

directory -> weights -> task -> run -> model file and results.json
"""

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from fasthebb.model_file import ModelCard
from fasthebb_cli.compute import processes
from fasthebb_cli.compute.batch_norm import share_batch_norm
from fasthebb_cli.compute.device import Compute
from fasthebb_cli.compute.processes import PeerFailed, PeerLost
from fasthebb_cli.compute.seeds import derived_seed
from fasthebb_cli.console.view import View
from fasthebb_cli.data.dataset import Dataset
from fasthebb_cli.errors import InputError, Interrupted, RunError
from fasthebb_cli.run.checkpoint import REMEDY, find_checkpoint, load_checkpoint, remove_checkpoints
from fasthebb_cli.run.directory import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    ERROR_FILE,
    FILTERS_FILE,
    FINGERPRINT_FILE,
    MODEL_FILE,
    RESULTS_FILE,
    is_older,
    read_json,
    write_json,
    write_text,
)
from fasthebb_cli.run.loop import Position, Session, restore, run_task, versions
from fasthebb_cli.run.plan import PlannedStage, nearest_difference
from fasthebb_cli.run.record import Record, open_log, save_filters, save_model
from fasthebb_cli.run.start import Start, start_of
from fasthebb_cli.settings.config import Config
from fasthebb_cli.stages import STAGES, Context, Task


@dataclass(frozen=True)
class Outcome:
    """A finished stage: its results, and whether they were there already."""

    stage: PlannedStage
    results: dict[str, Any]
    cached: bool


@dataclass
class Cell:
    """What the stages of one cell share."""

    config: Config
    yaml: str
    dataset: Dataset
    compute: Compute
    view: View


def run_stage(cell: Cell, stage: PlannedStage) -> Outcome:
    """The stage's outcome. Of several processes the first alone looks at the directory and writes into it, but for the
    checkpoint, which all read, and the message of one that fails.
    """
    config, directory = cell.config, stage.directory
    finished = processes.from_first(lambda: _opened(cell, stage))
    if finished is not None:
        cell.view.skipped(stage, finished)
        return Outcome(stage, finished, cached=True)
    if processes.is_first():
        cell.view.log = open_log(directory)
    try:
        results = _do_stage(cell, stage)
    except Interrupted as stopped:
        raise Interrupted(f"{stopped} of {stage.name}" + (" (leave out force=true)" if config.force else "")) from None
    except PeerFailed:
        raise
    except Exception as error:
        failure = error if isinstance(error, InputError | RunError) else _as_run_error(error, stage)
        if not isinstance(failure, PeerFailed):
            with suppress(RunError):  # as on a full disk
                write_text(directory / ERROR_FILE, f"{failure or f'{type(error).__name__}: {error}'}\n")
        if failure is None or failure is error:
            raise
        raise failure from error
    finally:
        cell.view.log = None
    return Outcome(stage, results, cached=False)


def _opened(cell: Cell, stage: PlannedStage) -> dict[str, Any] | None:
    """The results of a stage that is finished; else its directory is made ready, and None."""
    directory = stage.directory
    if cell.config.force and directory.exists() and is_older(directory / FINGERPRINT_FILE):
        shutil.rmtree(directory)
    if not stage.finished:
        _open_directory(cell, stage)
        return None
    results = read_json(directory / RESULTS_FILE)
    if results.get("fingerprint") != stage.fingerprint:
        raise InputError(f"{directory / RESULTS_FILE} is of other settings or damaged; delete {directory} to redo it")
    return results


def _do_stage(cell: Cell, stage: PlannedStage) -> dict[str, Any]:
    config, compute, directory = cell.config, cell.compute, stage.directory
    checkpoint = directory / CHECKPOINT_FILE
    found = processes.from_first(lambda: find_checkpoint(directory, cell.view.warn))
    state = load_checkpoint(found, stage.fingerprint) if found is not None else None
    start = start_of(config, cell.dataset, stage, cell.view)
    network = share_batch_norm(compute.place(start.network))
    if compute.compile and not stage.settings.in_hooks:  # there the learner compiles what its hooks do
        network.compile()
    others = (processes.rank(),) if processes.rank() else ()  # each draws dropout of its own
    torch.manual_seed(derived_seed(config.seed, stage.name, *others))
    task = STAGES[stage.kind](
        Context(
            config, stage.name, stage.settings, cell.dataset, network, compute, start.statistics,
            untrained=stage.previous is None and config.init_from is None, resumed=state is not None,
        )
    )  # fmt: skip
    try:
        position = restore(task, network, state) if state is not None else Position()
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"checkpoint {found} does not fit this stage; {REMEDY}") from error
    session = Session(checkpoint, stage.fingerprint, {"yaml": cell.yaml}, compute)
    record = Record(directory if processes.is_first() else None, position.records)
    try:
        with cell.view.stage(stage, task, position) as display:
            position = run_task(task, network, position, session, record, display)
    finally:
        record.close()
    measured = task.finish(position.records[-1] if position.records else {})
    if stage.settings.measures:  # it reports the labels that the network has seen in all stages
        for name, seen in (("labels_train", start.labels_train), ("labels_validation", start.labels_validation)):
            measured[name] = max(measured[name], seen)
    results = processes.from_first(lambda: _finish(cell, stage, task, position, start, measured))
    if position.stopped:
        raise Interrupted("the end")
    return results


def _as_run_error(error: Exception, stage: PlannedStage) -> RunError | None:
    """What the machine refused, memory or disk, in the user's terms; None for any other fault."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        graph = ", or set gpu.graph=false" if isinstance(error, torch.OutOfMemoryError) else ""
        return RunError(f"{stage.name}: out of memory; lower {stage.kind}.batch_size or model.width{graph}")
    if processes.count() > 1 and "peer" in str(error):  # what gloo says of a broken connection
        return PeerLost(f"{stage.name}: another process of this run ended; see the messages before this")
    if isinstance(error, OSError):
        return RunError(f"{stage.name}: {error.strerror or error} ({error.filename or stage.directory})")
    return None


def _finish(
    cell: Cell, stage: PlannedStage, task: Task, position: Position, start: Start, measured: dict[str, Any]
) -> dict[str, Any]:
    """Writes weights, filters and, last of all, results.json, which says that the stage is finished."""
    config, directory = cell.config, stage.directory
    epochs = len(position.records)
    if epochs < task.epochs:
        cell.view.note(f"{stage.name}: ended after {epochs} of {task.epochs} epochs: {task.ended()}")
    images = task.samples * epochs
    results = {
        "stage": stage.name,
        "kind": stage.kind,
        "dataset": config.dataset.name,
        "model": config.model.name,
        "rule": config.rule.name,
        "label_fraction": config.label_fraction,
        "seed": config.seed,
        **measured,
        "epochs": epochs,
        "seconds": round(position.seconds, 3),
        "images_per_second": round(images / position.seconds, 3) if position.seconds > 0 else None,
        "device": cell.compute.describe(),
        "fingerprint": stage.fingerprint,
        "versions": versions(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if not stage.settings.measures:
        mean, std = start.statistics
        card = ModelCard(
            config.model.name, config.model.arguments(), cell.dataset.source.channels, cell.dataset.source.size,
            list(cell.dataset.classes), mean.tolist(), std.tolist(), config.rule.whitening is not None,
            start.readout.layer,
            max(start.labels_train, measured["labels_train"]),
            max(start.labels_validation, measured["labels_validation"]), taught=not stage.settings.pretrains,
            hidden=start.readout.hidden,
        )  # fmt: skip
        save_filters(directory / FILTERS_FILE, start.network)
        save_model(directory / MODEL_FILE, start.network, card)
    write_json(directory / RESULTS_FILE, results)
    remove_checkpoints(directory)
    cell.view.finished(stage, results)
    return results


def _open_directory(cell: Cell, stage: PlannedStage) -> None:
    """A stage's directory with what describes it; a new one says how it differs from the nearest there is."""
    directory = stage.directory
    (directory / ERROR_FILE).unlink(missing_ok=True)  # of an earlier start
    if not (directory / FINGERPRINT_FILE).exists():
        nearest = nearest_difference(stage)
        if nearest is not None:
            cell.view.differs(stage, *nearest)
        write_text(directory / CONFIG_FILE, cell.yaml)
        write_json(directory / FINGERPRINT_FILE, stage.content)
