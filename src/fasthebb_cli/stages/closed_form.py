"""Fine-tuning in closed form: a classifier on the components that the stage before has made. No backward pass.

1. A pass over the labelled images keeps the components of each one, of its mirror image and of one view. For a
   graph, the components of all training images come from the stage before. If it has not kept them, or those of other
   images, the pass is over all of them.
2. The classifier is chosen and fitted, see `fasthebb.readout.choose`. No validation label is read: each candidate is
   judged by the score that a labelled image gets when its own label is left out.

More labelled images than memory holds: the pass keeps some of them, and a second one adds up the rows of all, so memory
does not grow with their number.

All that is kept between steps is sums over images, or places that one process fills and the others leave at 0: it adds
over processes.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fasthebb.readout.candidates import JUDGED, Rows, balanced
from fasthebb.readout.choose import Fitted, basis, fitted, fitted_to_many, fitted_to_sums
from fasthebb.readout.kernel import targets
from fasthebb.readout.network import ClosedForm
from fasthebb.readout.ridge import Products
from fasthebb.readout.views import mirrored
from fasthebb_cli.compute import processes
from fasthebb_cli.compute.signals import stops_raise
from fasthebb_cli.data.dataset import Dataset
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.settings.closed_form import ClosedFormConfig
from fasthebb_cli.settings.config import Config
from fasthebb_cli.stages.components import GRAPH_IMAGES, Parts, Views, read, total, which_images
from fasthebb_cli.stages.images import all_training_images, labelled_images
from fasthebb_cli.stages.task import Batch, Context, Task, results

TOLD = ("expected_top1", "labels_judged", "expected_loss", "chosen", "candidates")
KEPT = 12  # times finetune.kernel_rows: most rows of labelled images that are kept in memory


def closed_form(context: Context) -> Task:
    settings, dataset, network = context.settings, context.dataset, context.network
    assert isinstance(settings, ClosedFormConfig)
    assert isinstance(network, ClosedForm)
    network.eval()
    network.requires_grad_(False)
    images, labelled = all_training_images(dataset), labelled_images(dataset, context.config)
    passes = Passes(context, settings, network, images, labelled)
    read_in = (images if passes.reads_all else passes.labelled.sort().values, labelled)  # by pass
    samples = len(labelled if passes.adds_up else read_in[0])
    view_of, parts = Views(context, settings), [Parts(indices, settings.batch_size) for indices in read_in]

    def copies(batch: Batch, index_B: Tensor) -> Iterator[Tensor]:
        """Components of the images, of their mirror images, and of one view of each."""
        yield read(context, network.components, batch.images)
        if settings.mirror:
            yield read(context, network.components, mirrored(batch.images))
        if settings.views:
            yield read(context, network.components, view_of(batch, index_B, 0))

    def first_pass(batch: Batch, index_B: Tensor) -> None:
        if passes.reads_all:
            passes.keep_all(index_B, read(context, network.components, batch.images).cpu())
        kept_B = passes.kept(index_B)
        if kept_B.any():
            few = Batch(batch.images[kept_B.to(batch.images.device)], batch.labels, batch.total)
            passes.keep(index_B[kept_B], torch.stack(list(copies(few, index_B[kept_B]))).cpu())

    def second_pass(batch: Batch, index_B: Tensor) -> None:
        targets_BC = targets(batch.labels, len(dataset.classes))
        weight_B = None if passes.weight_C is None else passes.weight_C.to(batch.labels.device)[batch.labels]
        for z_BK in copies(batch, index_B):
            passes.products.add(network.inputs(z_BK), targets_BC, weight_B)

    @torch.no_grad()
    def step(epoch: int, step: int, batch: Batch) -> None:
        (first_pass, second_pass)[epoch](batch, parts[epoch].here(step))

    def end_epoch(epoch: int) -> dict[str, Any]:
        passes.gather(epoch)
        made: Fitted = processes.from_first(lambda: fit(epoch))
        for name, value in made.buffers.items():
            setattr(network, name, value.contiguous().to(context.compute.device))
        return made.report

    @stops_raise()
    def fit(epoch: int) -> Fitted:
        return passes.fit(epoch, network, dataset.labels, len(dataset.classes))

    def batches(epoch: int, start: int) -> Iterator[Batch]:
        return context.batches(read_in[epoch], settings.batch_size, start=start)

    def finish(last: Mapping[str, Any]) -> dict[str, Any]:
        told: dict[str, Any] = {name: last.get(name) for name in TOLD}
        return results(samples=samples, labels_train=len(labelled), **told)

    return Task(
        epochs=2 if passes.adds_up else 1,
        samples=samples,
        batch_size=settings.batch_size,
        batches=batches,
        step=step,
        end_epoch=end_epoch,
        finish=finish,
        state={"passes": passes},
        notes=passes.notes(),
    )


def check_closed_form(config: Config, dataset: Dataset, settings: ClosedFormConfig) -> None:
    """Raises:
    InputError: too many images for a graph.
    """
    images = len(all_training_images(dataset))
    if settings.classifier == "propagation" and images > GRAPH_IMAGES:
        raise InputError(
            f"finetune.classifier=propagation compares all pairs of {images:,} images, and takes at most "
            f"{GRAPH_IMAGES:,}; use kernel or ridge"
        )


class Passes:
    """What the passes add up, and the rows that they keep.

    Args:
        images, labelled: indices of all training images, and of the labelled ones.
    """

    def __init__(
        self, context: Context, settings: ClosedFormConfig, network: ClosedForm, images: Tensor, labelled: Tensor
    ) -> None:
        self.settings, self.images = settings, images
        components, classes = network.map.shape[1], len(context.dataset.classes)
        self.copies = 1 + settings.mirror + (settings.views > 0)
        all_rows = self.copies * len(labelled)
        # not for propagation, whose graph needs every labelled image's place
        self.many = all_rows > settings.kernel_rows and settings.classifier != "propagation"
        self.adds_up = self.many and all_rows > KEPT * settings.kernel_rows
        order = torch.randperm(len(labelled), generator=torch.Generator().manual_seed(context.seed_for("kept")))
        self.labelled = labelled[order]  # those whose rows are kept, the first of which judge the candidates
        landmarks = 0 if settings.classifier == "ridge" else min(settings.landmarks, len(labelled))
        if self.adds_up:
            self.labelled = self.labelled[: max(landmarks, JUDGED)]
        self.landmarks = landmarks
        self.of_all = len(labelled)
        self.weight_C = balanced(context.dataset.labels[labelled], classes) if settings.balance else None
        tries_graph = len(images) <= GRAPH_IMAGES and not self.many
        self.graph = settings.classifier == "propagation" or (settings.classifier == "auto" and tries_graph)
        end = int(images.max()) + 1
        self.place_of_image, self.row_of_image = torch.full((end,), -1), torch.full((end,), -1)
        self.place_of_image[images] = torch.arange(len(images))
        self.row_of_image[self.labelled] = torch.arange(len(self.labelled))
        self.products = Products(landmarks or components, classes) if self.adds_up else Products(0, 0)
        self.rows_RLK = torch.zeros(self.copies, len(self.labelled), components)
        all_NK = network.take_kept(which_images(context.dataset))
        if all_NK is not None and all_NK.shape != (len(images), components):
            all_NK = None
        self.reads_all = self.graph and all_NK is None
        self.all_NK = torch.zeros(len(images), components) if self.reads_all else torch.empty(0)
        if self.graph and all_NK is not None:
            self.all_NK = all_NK.cpu()
        device = network.map.device  # a checkpoint is loaded over these; a dry run has none
        network.sharpness = torch.ones((), device=device)
        network.rows = torch.zeros(landmarks if self.adds_up else 0, components, device=device)

    def notes(self) -> list[str]:
        """Choices that are left out, and why."""
        if self.many:
            what = f"a kernel with {self.landmarks:,} landmarks" if self.landmarks else "ridge, from sums"
            return [
                f"{self.of_all:,} labelled images make {self.copies * self.of_all:,} rows, and finetune.kernel_rows is "
                f"{self.settings.kernel_rows:,}: the classifier is {what}"
            ]
        if self.settings.classifier == "auto" and not self.graph:
            return [
                f"propagation compares all pairs of {len(self.images):,} images; it is tried with at most "
                f"{GRAPH_IMAGES:,}"
            ]
        return []

    def kept(self, index_B: Tensor) -> Tensor:
        """Whose rows are kept, bool (B,)."""
        return self.row_of_image[index_B] >= 0

    def keep(self, index_B: Tensor, copies_RBK: Tensor) -> None:
        """Keeps the components of labelled images."""
        self.rows_RLK[:, self.row_of_image[index_B]] = copies_RBK

    def keep_all(self, index_B: Tensor, z_BK: Tensor) -> None:
        """Keeps the components of all images."""
        self.all_NK[self.place_of_image[index_B]] = z_BK

    def gather(self, epoch: int) -> None:
        """The first process gets what all have added up or kept in an epoch, and the others start anew from 0."""
        if epoch == 1:
            self.products = total(self.products, Products(0, 0))
            return
        for kept in (self.rows_RLK, *([self.all_NK] if self.reads_all else [])):
            processes.summed(kept)
            kept *= processes.is_first()

    def fit(self, epoch: int, network: ClosedForm, labels: Tensor, classes: int) -> Fitted:
        """After the first pass: a classifier, or what the second pass compares with. After that: the classifier.

        Raises:
            RunError: the components are not finite, or all 0.
        """
        settings = self.settings
        largest = float(self.rows_RLK.abs().max())
        if not 0 < largest < math.inf:
            what = "all 0" if largest == 0 else "not finite"
            raise RunError(f"finetune: the features of the labelled images are {what}; did pre-training diverge?")
        rows = Rows(self.rows_RLK, labels[self.labelled], 1 + settings.mirror, classes, self.weight_C)
        if epoch == 1:
            made = {name: value.cpu() for name, value in network.named_buffers(recurse=False)}
            return fitted_to_sums(rows, self.products, made, settings.ridge)
        if self.adds_up:
            return basis(rows, self.landmarks, settings.sharpness, settings.ridge)
        if self.many:
            return fitted_to_many(rows, self.landmarks, settings.sharpness, settings.ridge)
        return fitted(
            rows,
            everything_NK=self.all_NK if self.graph else None,
            positions_L=self.place_of_image[self.labelled],
            classifier=settings.classifier,
            sharpness=settings.sharpness,
            ridge=settings.ridge,
        )

    def state_dict(self) -> dict[str, Any]:
        everything = self.all_NK if self.reads_all else torch.empty(0)  # else the stage before keeps it
        rows, everything = (processes.summed(value.clone()) for value in (self.rows_RLK, everything))
        return {"products": processes.summands(self.products.state_dict()), "rows": rows, "all": everything}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.products.load_state_dict(processes.own_summands(state["products"]))
        kept = processes.is_first()  # each place is filled by one process, so that their sum is exact
        self.rows_RLK = state["rows"] * kept
        if self.reads_all:
            self.all_NK = state["all"] * kept
