"""Fine-tuning in closed form: two passes over the images, sums, and a few factorisations. No backward pass.

1. First pass, all training images without their labels: mean and covariance of the features. From them come the
   deviations, and the leading components z.
2. Second pass: the differences of each image's z and that of its views, which whiten z; and the z of labelled images,
   of their mirror images and of one view each.
3. The classifier is chosen and fitted on the labelled images' z, see `fasthebb.readout.choose`. No validation label is
   read: each candidate is judged by the score that a labelled image gets when its own label is left out.

More labelled images than a kernel holds: a third pass adds up their rows, so memory does not grow with their number.

All that is kept between steps is sums over images, or places that one process fills and the others leave at 0: it adds
over processes.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

from fasthebb.readout import projection
from fasthebb.readout.choose import JUDGED, Fitted, Rows, basis, fitted, fitted_to_sums
from fasthebb.readout.kernel import targets
from fasthebb.readout.moments import Moments
from fasthebb.readout.network import ClosedForm
from fasthebb.readout.ridge import Products
from fasthebb.readout.views import VIEWS, draws, mirrored
from fasthebb_cli.compute import processes
from fasthebb_cli.compute.signals import stops_raise
from fasthebb_cli.data.dataset import Dataset
from fasthebb_cli.data.loading import batch_lengths
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.closed_form import ClosedFormConfig
from fasthebb_cli.settings.config import Config
from fasthebb_cli.stages.first_step import calibrate_batch_norm, fit_whitening
from fasthebb_cli.stages.images import all_training_images, labelled_images
from fasthebb_cli.stages.task import Batch, Context, Task, results

TOLD = ("expected_top1", "labels_judged", "expected_loss", "chosen", "candidates")
S = TypeVar("S", Moments, Products)
GRAPH_IMAGES = 60_000  # most images of a graph: its similarities are computed for all pairs
GRAPH_LABELS = 2000  # most labelled images that `auto` tries a graph with: each spreads over all images


def closed_form(context: Context) -> Task:
    settings, dataset, network = context.settings, context.dataset, context.network
    assert isinstance(settings, ClosedFormConfig)
    assert isinstance(network, ClosedForm)
    check_closed_form(context.config, dataset, settings)  # again, as a dry run validates nothing
    if context.begins:
        fit_whitening(context)
        calibrate_batch_norm(context, network.features)
    network.eval()
    network.requires_grad_(False)
    images, labelled = all_training_images(dataset), labelled_images(dataset, context.config)
    passes = Passes(context, settings, network, images, labelled)
    mean, std = (value.to(context.compute.device) for value in context.statistics)
    read_in = (images, images, labelled)  # by pass
    lengths = [batch_lengths(len(indices), settings.batch_size) for indices in read_in]
    starts = [[0, *accumulate(some)] for some in lengths]

    def here(epoch: int, step: int) -> Tensor:
        """The images of this process's part of a batch, as indices."""
        start, part = starts[epoch][step], processes.part_of(lengths[epoch][step])
        return read_in[epoch][start + part.start : start + part.stop]

    def read(part: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """What a part of the network gives, in float32: sums over images are not for bfloat16."""
        with context.compute.autocast():
            return part(images).float()

    def view_of(batch: Batch, index_B: Tensor, number: int) -> Tensor:
        draws_BP = draws(passes.seed, number, index_B).to(batch.images.device)
        return VIEWS[settings.view_kind](batch.images, draws_BP, mean, std)

    def copies(batch: Batch, index_B: Tensor) -> Iterator[Tensor]:
        """The images, their mirror images, and one view of each."""
        yield batch.images
        if settings.mirror:
            yield mirrored(batch.images)
        if settings.views:
            yield view_of(batch, index_B, 0)

    def second_pass(batch: Batch, index_B: Tensor) -> None:
        z_BK = read(network.components, batch.images)
        for number in range(settings.views):
            passes.second.add(z_BK - read(network.components, view_of(batch, index_B, number)))
        kept_B = passes.kept(index_B)
        if kept_B.any():
            few = Batch(batch.images[kept_B.to(batch.images.device)], batch.labels, batch.total)
            rows = [read(network.components, copy) for copy in copies(few, index_B[kept_B])]
            passes.keep(index_B[kept_B], torch.stack(rows).cpu())
        passes.keep_all(index_B, z_BK.cpu())

    def third_pass(batch: Batch, index_B: Tensor) -> None:
        targets_BC = targets(batch.labels, len(dataset.classes))
        for copy in copies(batch, index_B):
            passes.products.add(network.inputs(read(network.components, copy)), targets_BC)

    @torch.no_grad()
    def step(epoch: int, step: int, batch: Batch) -> None:
        if epoch == 0:
            passes.first.add(read(network.features, batch.images))
        else:
            (second_pass, third_pass)[epoch - 1](batch, here(epoch, step))

    def end_epoch(epoch: int) -> dict[str, Any]:
        if epoch == 0:
            passes.project(network)
            return {"components": network.map.shape[1]}
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
        return results(samples=len(images), labels_train=len(labelled), **told)

    return Task(
        epochs=3 if passes.adds_up else 2,
        samples=len(images),
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
    InputError: too many images for a graph, or labels of fewer than two classes.
    """
    images, labels_L = len(all_training_images(dataset)), dataset.labels[labelled_images(dataset, config)]
    if settings.classifier == "propagation" and images > GRAPH_IMAGES:
        raise InputError(
            f"finetune.classifier=propagation compares all pairs of {images:,} images, and takes at most "
            f"{GRAPH_IMAGES:,}; use kernel or ridge"
        )
    if len(labels_L.unique()) < 2:
        raise InputError(
            f"finetune=closed_form needs labels of two classes or more, and label_fraction={config.label_fraction:g} "
            f"chooses {len(labels_L)} of one class"
        )


class Passes:
    """What the passes add up, and the rows that they keep.

    Args:
        images, labelled: indices of all training images, and of the labelled ones.
    """

    def __init__(
        self, context: Context, settings: ClosedFormConfig, network: ClosedForm, images: Tensor, labelled: Tensor
    ) -> None:
        self.settings, self.images, self.seed = settings, images, context.seed_for("views")
        source, classes = context.dataset.source, len(context.dataset.classes)
        blank = torch.zeros(1, source.channels, source.size, source.size, device=context.compute.device)
        with torch.no_grad():
            features = network.features(context.compute.arrange(blank)).shape[1]
        components = min(settings.components, features, len(images))
        self.copies = 1 + settings.mirror + (settings.views > 0)
        many = self.copies * len(labelled) > settings.kernel_rows
        self.adds_up = many and settings.classifier != "propagation"  # whose graph needs every labelled image's place
        order = torch.randperm(len(labelled), generator=torch.Generator().manual_seed(context.seed_for("kept")))
        self.labelled = labelled[order]  # those whose rows are kept, the first of which judge the candidates
        landmarks = 0 if settings.classifier == "ridge" else min(settings.landmarks, len(labelled))
        if self.adds_up:
            self.labelled = self.labelled[: max(landmarks, JUDGED)]
        self.landmarks = landmarks
        self.of_all = len(labelled)
        self.graph = (
            settings.classifier in ("auto", "propagation")
            and len(images) <= GRAPH_IMAGES
            and (settings.classifier == "propagation" or len(labelled) <= GRAPH_LABELS)
        )
        end = int(images.max()) + 1
        self.place_of_image, self.row_of_image = torch.full((end,), -1), torch.full((end,), -1)
        self.place_of_image[images] = torch.arange(len(images))
        self.row_of_image[self.labelled] = torch.arange(len(self.labelled))
        self.first, self.second = Moments(features), Moments(components)
        self.products = Products(landmarks or components, classes) if self.adds_up else Products(0, 0)
        self.rows_RLK = torch.zeros(self.copies, len(self.labelled), components)
        self.all_NK = torch.zeros(len(images), components) if self.graph else torch.empty(0)
        device = context.compute.device  # a checkpoint is loaded over these; a dry run has none
        network.mean = torch.zeros(features, device=device)
        network.map = torch.zeros(features, components, device=device)
        network.sharpness = torch.ones((), device=device)
        network.rows = torch.zeros(landmarks if self.adds_up else 0, components, device=device)

    def notes(self) -> list[str]:
        """Choices that are left out, and why."""
        if self.adds_up:
            what = f"a kernel with {self.landmarks:,} landmarks" if self.landmarks else "ridge, from sums"
            return [
                f"{self.of_all:,} labelled images make {self.copies * self.of_all:,} rows, and finetune.kernel_rows is "
                f"{self.settings.kernel_rows:,}: the classifier is {what}"
            ]
        if self.settings.classifier == "auto" and not self.graph:
            return [
                f"{len(self.images):,} images, {self.of_all:,} of them labelled: propagation is tried with at most "
                f"{GRAPH_IMAGES:,} images and {GRAPH_LABELS:,} labels"
            ]
        return []

    def project(self, network: ClosedForm) -> None:
        """The features' deviations and leading components become the network's map."""
        first = total(self.first, Moments(0))
        scale_D = projection.standard_scale(first.covariance().diagonal(), self.settings.floor)
        standard_DD = first.covariance() * scale_D[:, None] * scale_D
        basis_DK = projection.leading_components(standard_DD, len(self.second.sum_D))
        network.mean = first.mean().float().to(network.mean.device)
        # contiguous, as a checkpoint gives it back: another layout gives products other bits
        network.map = (scale_D[:, None] * basis_DK).float().contiguous().to(network.map.device)
        self.first = Moments(0)

    def kept(self, index_B: Tensor) -> Tensor:
        """Whose rows are kept, bool (B,)."""
        return self.row_of_image[index_B] >= 0

    def keep(self, index_B: Tensor, copies_RBK: Tensor) -> None:
        """Keeps the components of labelled images."""
        self.rows_RLK[:, self.row_of_image[index_B]] = copies_RBK

    def keep_all(self, index_B: Tensor, z_BK: Tensor) -> None:
        """Keeps the components of all images, where there is to be a graph."""
        if self.graph:
            self.all_NK[self.place_of_image[index_B]] = z_BK

    def gather(self, epoch: int) -> None:
        """The first process gets what all have added up or kept in an epoch, and the others start anew from 0."""
        if epoch == 2:
            self.products = total(self.products, Products(0, 0))
            return
        self.second = total(self.second, Moments(0))
        for kept in (self.rows_RLK, self.all_NK):
            processes.summed(kept)
            kept *= processes.is_first()

    def fit(self, epoch: int, network: ClosedForm, labels: Tensor, classes: int) -> Fitted:
        """After the second pass: a classifier, or what the third pass compares with. After that: the classifier."""
        settings = self.settings
        rows = Rows(self.rows_RLK, labels[self.labelled], 1 + settings.mirror, classes)
        if epoch == 2:
            made = {name: value.cpu() for name, value in network.named_buffers(recurse=False)}
            return fitted_to_sums(rows, self.products, made, settings.ridge)
        whitening_KK = None
        if settings.views:
            differences_KK = self.second.products_DD / self.second.count / 2
            whitening_KK = projection.view_whitening(differences_KK, settings.shrinkage)
        map_DK = network.map.cpu()
        if self.adds_up:
            self.rows_RLK = rows.whitened(whitening_KK).copies_RLK
            return basis(rows, map_DK, whitening_KK, self.landmarks, settings.sharpness)
        return fitted(
            rows,
            map_DK,
            whitening_KK=whitening_KK,
            everything_NK=self.all_NK if self.graph else None,
            positions_L=self.place_of_image[self.labelled],
            classifier=settings.classifier,
            sharpness=settings.sharpness,
            ridge=settings.ridge,
        )

    def state_dict(self) -> dict[str, Any]:
        rows, everything = (processes.summed(value.clone()) for value in (self.rows_RLK, self.all_NK))
        return {
            "first": total(self.first, Moments(0)).state_dict(),
            "second": total(self.second, Moments(0)).state_dict(),
            "products": total(self.products, Products(0, 0)).state_dict(),
            "rows": rows,
            "all": everything,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        kept = 1 if processes.is_first() else 0
        for sums, name in ((self.first, "first"), (self.second, "second"), (self.products, "products")):
            sums.load_state_dict({key: value * kept for key, value in state[name].items()})
        self.rows_RLK, self.all_NK = state["rows"] * kept, state["all"] * kept


def total(sums: S, whole: S) -> S:
    """`whole`, with the sums over all processes."""
    whole.load_state_dict({name: processes.summed(value.clone()) for name, value in sums.state_dict().items()})
    return whole
