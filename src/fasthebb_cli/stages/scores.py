"""How well a network classifies: top-1, top-5, loss, calibration and the confusion matrix. B images, C classes."""

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fasthebb.readout.calibration import BINS, calibration_error, calibration_gaps
from fasthebb_cli.compute import processes
from fasthebb_cli.stages.task import Batch, Context
from fasthebb_cli.stages.totals import Totals, check_scores

RANKED = 5  # classes of which one must be right; of so few, one always is


@torch.no_grad()
def add_batch(totals: Totals, context: Context, batch: Batch) -> tuple[Tensor, Tensor]:
    """Adds one batch's loss and hits to the totals.

    With at most five classes top-5 is always a hit.

    Returns:
        The predicted labels (B,), and how sure the network is of each: the largest softmax (B,), in [0, 1].
    """
    with context.compute.autocast():
        scores_BC: Tensor = context.network(batch.images).float()
    ranked = scores_BC.topk(min(RANKED, scores_BC.shape[1]), dim=1).indices
    hits = ranked == batch.labels.unsqueeze(1)
    loss = F.cross_entropy(scores_BC, batch.labels, reduction="sum")
    totals.add(top1=hits[:, 0].sum(), top5=hits.sum(), loss=loss, samples=len(batch.labels))
    return ranked[:, 0], scores_BC.softmax(1).amax(1)


def accuracy(context: Context, indices: Tensor, batch_size: int) -> Generator[None, None, dict[str, float]]:
    """Scores the network on the given images, in evaluation mode; its modes are the same afterwards.

    Yields after every batch, so that the caller may stop in between.

    Returns:
        top1, top5 and loss.
    """
    totals = Totals(context.compute.device)
    modes = {module: module.training for module in context.network.modules()}
    context.network.eval()
    for batch in context.batches(indices, batch_size):
        add_batch(totals, context, batch)
        yield
    for module, training in modes.items():
        module.training = training
    return check_scores(totals.means())


class Calibration:
    """How far accuracy and confidence are apart. Each process adds its own images."""

    def __init__(self) -> None:
        self.gaps = torch.zeros(BINS, dtype=torch.float64)

    def add(self, confidence_B: Tensor, right_B: Tensor) -> None:
        self.gaps += calibration_gaps(confidence_B, right_B)

    def error(self, count: int) -> float:
        """The expected calibration error in [0, 1] over the `count` images of all processes."""
        return calibration_error(processes.summed(self.gaps.clone()), count)

    def state_dict(self) -> dict[str, Any]:
        return {"gaps": processes.summands({"bins": self.gaps})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.gaps = processes.own_summands(state["gaps"])["bins"]


class Confusion:
    """Number of images by true class (rows) and predicted class (columns). Each process counts its own images."""

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def add(self, labels: Tensor, predictions: Tensor) -> None:
        classes = len(self.counts)
        pairs = (labels * classes + predictions).cpu()
        self.counts += torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def total(self) -> Tensor:
        """The sum over processes."""
        return processes.summed(self.counts.clone())

    def accuracy(self) -> list[float | None]:
        """Share of each class's images that were classified right; None for a class without images."""
        counts = self.total()
        totals, hits = counts.sum(1).tolist(), counts.diagonal().tolist()
        return [right / total if total else None for right, total in zip(hits, totals, strict=True)]

    def imbalance(self) -> float:
        """How many times as many images the most frequent class has as the rarest of those that there are."""
        counts = self.total().sum(1)
        counts = counts[counts > 0]
        return float(counts.max() / counts.min())

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.total()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = state["counts"] if processes.is_first() else torch.zeros_like(state["counts"])
