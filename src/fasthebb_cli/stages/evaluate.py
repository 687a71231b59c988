"""Top-1, top-5, loss and confusion on images that no stage before has seen.

`evaluate.split=validation` is for choosing settings; the labels looked at are counted.
"""

from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fasthebb_cli.compute import processes
from fasthebb_cli.data.dataset import Dataset
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.evaluate import EvaluateConfig
from fasthebb_cli.settings.kind import StageSettings
from fasthebb_cli.stages.task import Batch, Context, Task, Totals

LARGEST_CONFUSION = 200  # classes: more would make results.json megabytes


def evaluate(context: Context) -> Task:
    settings, dataset = context.settings, context.dataset
    assert isinstance(settings, EvaluateConfig)
    indices = images_of(dataset, settings)
    totals = Totals(context.compute.device)
    confusion = Confusion(len(dataset.classes))
    context.network.eval()

    def step(epoch: int, step: int, batch: Batch) -> None:
        confusion.add(batch.labels, add_batch(totals, context, batch))

    def finish(last: Mapping[str, Any]) -> dict[str, Any]:
        chosen_on = len(indices) if settings.split == "validation" else 0
        return {name: last[name] for name in ("top1", "top5", "loss")} | {
            "classes": list(dataset.classes),
            "top1_by_class": confusion.accuracy(),
            "confusion": confusion.total().tolist() if len(dataset.classes) <= LARGEST_CONFUSION else None,
            "split": settings.split,
            "samples": len(indices),
            "labels_train": context.labels_train,
            "labels_validation": max(context.labels_validation, chosen_on),
        }

    return Task(
        epochs=1,
        samples=len(indices),
        batch_size=settings.batch_size,
        batches=lambda epoch, start: context.batches(indices, settings.batch_size, start=start),
        step=step,
        end_epoch=lambda epoch: totals.means(),
        finish=finish,
        state={"totals": totals, "confusion": confusion},
    )


def images_of(dataset: Dataset, settings: StageSettings) -> Tensor:
    """The images of the split.

    Raises:
        InputError: there are none, or no labels.
    """
    if not dataset.classes:
        raise InputError(f"dataset {dataset.name} has no labels to evaluate against; use `fasthebb pretrain`")
    indices = dataset.test if settings.split == "test" else dataset.validation
    if len(indices) == 0:
        raise InputError(f"{settings.kind}.split={settings.split}: dataset {dataset.name} has no such images")
    return indices


@torch.no_grad()
def add_batch(totals: Totals, context: Context, batch: Batch) -> Tensor:
    """Adds one batch's loss and hits and gives its predictions; top-5 among at most five classes is always a hit."""
    with context.compute.autocast():
        scores: Tensor = context.network(batch.images).float()
    ranked = scores.topk(min(5, scores.shape[1]), dim=1).indices
    best = ranked == batch.labels.unsqueeze(1)
    loss = F.cross_entropy(scores, batch.labels, reduction="sum")
    totals.add(top1=best[:, 0].sum(), top5=best.sum(), loss=loss, samples=len(batch.labels))
    return ranked[:, 0]


class Confusion:
    """How many images of each class (rows) were taken for each class (columns); each process counts its own."""

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def add(self, labels: Tensor, predictions: Tensor) -> None:
        classes = len(self.counts)
        pairs = (labels * classes + predictions).cpu()
        self.counts += torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def total(self) -> Tensor:
        """Those of all processes."""
        return processes.summed(self.counts.clone())

    def accuracy(self) -> list[float | None]:
        """Share of each class that was recognised; None for one without images."""
        counts = self.total()
        totals, right = counts.sum(1).tolist(), counts.diagonal().tolist()
        return [hits / total if total else None for hits, total in zip(right, totals, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.total()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = state["counts"] if processes.is_first() else torch.zeros_like(state["counts"])


def accuracy(context: Context, indices: Tensor, batch_size: int) -> Generator[None, None, dict[str, float]]:
    """Returns top1, top5 and loss of the network as it is, over the given images; its mode is left as it was.

    Yields after every batch.
    """
    totals = Totals(context.compute.device)
    modes = {module: module.training for module in context.network.modules()}
    context.network.eval()
    for batch in context.batches(indices, batch_size):
        add_batch(totals, context, batch)
        yield
    for module, training in modes.items():
        module.training = training
    return totals.means()
