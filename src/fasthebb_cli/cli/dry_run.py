"""`--dry-run`: what a cell would do, where, with how many labels and for how long. It writes nothing."""

import statistics
import time
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from rich.markup import escape

from fasthebb.readout.network import ClosedForm
from fasthebb_cli.cli.cell import Paces, Row, told
from fasthebb_cli.compute.device import Compute, set_up
from fasthebb_cli.console.formats import backward_passes, clock, counted
from fasthebb_cli.console.tables import plain_table
from fasthebb_cli.console.view import BACKWARD, View
from fasthebb_cli.data.dataset import Dataset
from fasthebb_cli.run.dataset import open_dataset
from fasthebb_cli.run.directory import CHECKPOINT_FILE
from fasthebb_cli.run.failure import explained
from fasthebb_cli.run.own_source import own_sources
from fasthebb_cli.run.plan import PlannedStage
from fasthebb_cli.run.start import new_network
from fasthebb_cli.run.validate import planned
from fasthebb_cli.settings.config import Config
from fasthebb_cli.stages import STAGES, Context, Task
from fasthebb_cli.stages.components import are_kept, feature_count, which_images
from fasthebb_cli.stages.images import all_training_images, labelled_images
from fasthebb_cli.stages.task import Batch

STEPS = 5  # timed steps, spread over the epochs because layers may take turns
COMPONENTS = 1000  # of a closed form that is not fitted yet, about as many as usual
RECORDING = 4  # steps before each timed one where steps are replayed: after them its replay has been recorded


class Size(NamedTuple):
    """Images in a pass, labels, and of all passes the images that go through a backward pass and the seconds."""

    samples: int
    labels: int
    backward_passes: int
    seconds: float


def preview_cell(config: Config, view: View, paces: Paces) -> list[Row]:
    """Prints the cell's stages and returns them as a sweep's rows.

    Args:
        paces: what was measured so far; what this cell measures is added.
    """
    compute = set_up(config.gpu)
    dataset = open_dataset(config.dataset, config.seed, view, config.labelled)
    table = plain_table()
    for name in ("stage", "state", "images", "labels", BACKWARD, "time", "where"):
        justify: Literal["left", "right"] = "left" if name in ("stage", "state", "where") else "right"
        table.add_column(name, justify=justify, overflow="fold")
    rows = []
    seen = 0  # labels that the network has learnt from
    dataset, stages = planned(config, dataset)
    for stage in stages:
        state = _state(stage, config)
        known = None if state in ("finished", "missing") else paces
        try:
            size = _size(config, dataset, compute, stage, known)
        except Exception as error:
            raise explained(error, config, compute, stage) or error from error
        seen = max(seen, size.labels)
        labels = seen if stage.settings.measures else size.labels  # as the stage itself reports them
        shown = "–" if state in ("finished", "missing") else f"about {clock(size.seconds)}"
        table.add_row(
            escape(stage.name), state, f"{size.samples:,}", f"{labels:,}", backward_passes(size.backward_passes), shown,
            escape(str(stage.directory)),
        )  # fmt: skip
        rows.append(_row(config, stage, size, labels, cached=state == "finished"))
    view.note(
        f"{dataset.name}: {len(dataset.train):,} training, {len(dataset.validation):,} validation, "
        f"{len(dataset.test):,} test images, {counted(len(dataset.classes), 'class', 'classes')}; {compute.describe()}"
    )
    view.unread(own_sources(config))
    view.console.print(table)
    return rows


def _state(stage: PlannedStage, config: Config) -> str:
    if stage.finished:
        return "to be redone" if config.force and stage.wanted else "finished"
    if not stage.wanted:
        return "missing"
    return "to be resumed" if (stage.directory / CHECKPOINT_FILE).exists() and not config.force else "new"


def _size(config: Config, dataset: Dataset, compute: Compute, stage: PlannedStage, paces: Paces | None) -> Size:
    """The size of a stage; its seconds come from the pace of a few steps on this machine.

    Args:
        paces: of `preview_cell`; None: the stage runs no step, and takes 0 s.
    """
    network = compute.place(new_network(config, dataset, stage.readout))
    if isinstance(network, ClosedForm):
        features = feature_count(network.eval(), dataset.source, compute)
        network.make_blank(features, min(features, COMPONENTS), len(dataset.classes), compute.device)
        images = len(all_training_images(dataset))
        if are_kept(images, min(features, COMPONENTS)):
            network.keep(torch.zeros(images, min(features, COMPONENTS)), which_images(dataset))
    half = torch.full((dataset.source.channels,), 0.5)
    trained = stage.previous is not None or config.init_from is not None
    context = Context(
        config, stage.name, stage.settings, dataset, network, compute, (half, half),
        untrained=not trained, resumed=True,
    )  # fmt: skip
    task = STAGES[stage.kind](context)
    labels = len(labelled_images(dataset, config)) if stage.settings.reads_labels else 0
    passes = task.backward * task.epochs
    if paces is None or not task.epochs:
        return Size(task.samples, labels, passes, 0.0)
    batch = min(task.batch_size, task.samples)
    key = (
        str(stage.settings),
        str(config.model),
        str(config.rule),
        str(config.gpu),
        stage.readout.layer,
        dataset.digest,
        batch,
    )
    if key not in paces:
        paces[key] = _seconds_an_image(task, compute, replay=context.replays)
    return Size(task.samples, labels, passes, paces[key] * task.samples * task.epochs)


def _seconds_an_image(task: Task, compute: Compute, *, replay: bool) -> float:
    """The mean over some steps, without the first one; where steps are replayed, without those that record one."""
    first: list[float] = []
    timed: list[float] = []
    streams: dict[int, Iterator[tuple[int, Batch | None]]] = {}  # by epoch, as each may read other images
    for turn in range(STEPS):
        epoch = turn * (task.epochs - 1) // (STEPS - 1)
        stream = streams.setdefault(epoch, enumerate(task.batches(epoch, 0)))
        before = RECORDING if replay else 1 if turn == 0 else 0
        for paces in [*[first] * before, timed]:
            began = time.perf_counter()
            number, images = next(stream, (0, None))
            if images is None:
                break
            task.step(epoch, number, images)
            if compute.device.type != "cpu":
                torch.accelerator.synchronize()
            paces.append((time.perf_counter() - began) / images.total)
    return statistics.fmean(timed or first[1:] or first)


def _row(config: Config, stage: PlannedStage, size: Size, labels: int, *, cached: bool) -> Row:
    return told(stage) | {
        "rule": config.rule.name, "seed": config.seed, "top1": None, "top5": None, "labels_train": labels,
        "labels_validation": 0, "backward_passes": size.backward_passes, "seconds": size.seconds, "cached": cached,
    }  # fmt: skip
