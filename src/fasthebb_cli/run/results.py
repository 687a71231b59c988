"""What a finished stage leaves: the model file with its card, pictures of filters, and results.json.

results.json is written last: a directory that has it is finished.
"""

import time
from typing import Any

from torch import nn

from fasthebb.card import ModelCard
from fasthebb.stage_files import digest_of_file, seal_of
from fasthebb_cli.run.checkpoint import remove_checkpoints
from fasthebb_cli.run.directory import FILTERS_FILE, MODEL_FILE, RESULTS_FILE, write_json
from fasthebb_cli.run.loop import Position, versions
from fasthebb_cli.run.plan import PlannedStage
from fasthebb_cli.run.record import save_filters, save_model
from fasthebb_cli.run.shared import Cell
from fasthebb_cli.run.start import Start
from fasthebb_cli.stages import Task
from fasthebb_cli.stages.images import label_fraction


def results_of(
    cell: Cell, stage: PlannedStage, task: Task, position: Position, measured: dict[str, Any]
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        position: after the last epoch.
        measured: what `task.finish` returned.

    `backward_passes` is how many images went through a backward pass, summed over epochs. Finished epochs count, not
    steps of this process, so it is the same after a resume and with several processes.
    """
    config = cell.config
    epochs, seconds = len(position.records), position.seconds
    return {
        "stage": stage.name,
        "kind": stage.kind,
        "dataset": config.dataset.name,
        "model": config.model.name,
        "rule": config.rule.name,
        "label_fraction": label_fraction(cell.dataset, config) if cell.dataset.classes else config.label_fraction,
        "seed": config.seed,
        **measured,
        "epochs": epochs,
        "backward_passes": task.backward * epochs,
        "seconds": round(seconds, 3),
        "images_per_second": round(task.samples * epochs / seconds, 3) if seconds > 0 else None,
        "device": cell.compute.describe(),
        "fingerprint": stage.fingerprint,
        "versions": versions(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def keep_results(cell: Cell, stage: PlannedStage, network: nn.Module, start: Start, results: dict[str, Any]) -> None:
    """Writes the files of a finished stage and removes its checkpoints.

    The results get the digest of the model file, and a seal.
    """
    directory = stage.directory
    if not stage.settings.measures:
        save_filters(directory / FILTERS_FILE, network)
        save_model(directory / MODEL_FILE, network, _card(cell, stage, start, results))
        results["weights"] = digest_of_file(directory / MODEL_FILE)
    results["seal"] = seal_of(results)
    write_json(directory / RESULTS_FILE, results)
    remove_checkpoints(directory)


def _card(cell: Cell, stage: PlannedStage, start: Start, results: dict[str, Any]) -> ModelCard:
    config, dataset = cell.config, cell.dataset
    mean, std = start.statistics
    return ModelCard(
        model=config.model.name,
        arguments=config.model.arguments(),
        channels=dataset.source.channels,
        size=dataset.source.size,
        fit=config.dataset.fit,
        background=config.dataset.background,
        classes=list(dataset.classes),
        mean=mean.tolist(),
        std=std.tolist(),
        whitening=config.rule.whitening is not None,
        layer=start.readout.layer,
        hidden=start.readout.hidden,
        closed_form=start.readout.closed._asdict() if start.readout.closed else None,
        labels_train=max(start.labels_train, results["labels_train"]),
        labels_validation=max(start.labels_validation, results["labels_validation"]),
        taught=not stage.settings.pretrains and (stage.settings.reads_labels or start.taught),
    )
