"""Fine-tuning in closed form: two passes over the images, sums, and a few factorisations. No backward pass.

1. First pass, all training images without their labels: mean and covariance of the features. From them come the
   deviations, and the leading components z.
2. Second pass: the differences of each image's z and that of its views, which whiten z; and the z of the labelled
   images, of their mirror images and of one view each.
3. The classifier is chosen and fitted on the labelled images' z, see `fasthebb.readout.choose`. No validation label is
   read: each candidate is judged by the score that a labelled image gets when its own label is left out.

All that is kept between steps is sums over images, or places that one process fills and the others leave at 0: it adds
over processes.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fasthebb.readout import projection
from fasthebb.readout.choose import Fitted, Rows, fitted
from fasthebb.readout.moments import Moments
from fasthebb.readout.network import ClosedForm
from fasthebb.readout.views import DRAWS, VIEWS, mirrored
from fasthebb_cli.compute import processes
from fasthebb_cli.compute.signals import stops_raise
from fasthebb_cli.data.loading import batch_lengths
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.closed_form import ClosedFormConfig
from fasthebb_cli.stages.first_step import calibrate_batch_norm, fit_whitening
from fasthebb_cli.stages.images import all_training_images, labelled_images
from fasthebb_cli.stages.task import Batch, Context, Task, results

TOLD = ("expected_top1", "expected_loss", "chosen", "candidates")
GRAPH_IMAGES = 60_000  # most images of a graph: its similarities are computed for all pairs


def closed_form(context: Context) -> Task:
    settings, dataset, network = context.settings, context.dataset, context.network
    assert isinstance(settings, ClosedFormConfig)
    assert isinstance(network, ClosedForm)
    if context.begins:
        fit_whitening(context)
        calibrate_batch_norm(context, network.features)
    network.eval()
    network.requires_grad_(False)
    images, labelled = all_training_images(dataset), labelled_images(dataset, context.config)
    first_of_batch = torch.tensor([0, *batch_lengths(len(images), settings.batch_size)]).cumsum(0)
    place_N = torch.full((int(images.max()) + 1,), -1)
    place_N[labelled] = torch.arange(len(labelled))
    place_N = place_N[images]
    position_L = place_N.argsort()[-len(labelled) :]
    if settings.classifier == "propagation" and len(images) > GRAPH_IMAGES:
        raise InputError(
            f"finetune.classifier=propagation compares all pairs of {len(images):,} images, and takes at most "
            f"{GRAPH_IMAGES:,}; use kernel or ridge"
        )
    passes = Passes(context, settings, network, len(images), len(labelled))
    mean, std = (value.to(context.compute.device) for value in context.statistics)

    def here(step: int) -> slice:
        """The positions in `images` of this process's part of a batch."""
        start, end = (int(value) for value in first_of_batch[step : step + 2])
        part = processes.part_of(end - start)
        return slice(start + part.start, start + part.stop)

    def read(part: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """What a part of the network gives, in float32: sums over images are not for bfloat16."""
        with context.compute.autocast():
            return part(images).float()

    @torch.no_grad()
    def step(epoch: int, step: int, batch: Batch) -> None:
        if epoch == 0:
            passes.first.add(read(network.features, batch.images))
            return
        mine, z_BK = here(step), read(network.components, batch.images)
        copies = [z_BK]
        if settings.mirror:
            copies.append(read(network.components, mirrored(batch.images)))
        for k in range(settings.views):
            draws_BP = passes.draws(k)[mine].to(batch.images.device)
            view = VIEWS[settings.view_kind](batch.images, draws_BP, mean, std)
            view_BK = read(network.components, view)
            passes.second.add(z_BK - view_BK)
            if k == 0:
                copies.append(view_BK)
        passes.keep(mine, place_N[mine], torch.stack(copies).cpu())

    def end_epoch(epoch: int) -> dict[str, Any]:
        if epoch == 0:
            passes.project(network)
            return {"components": network.map.shape[1]}
        passes.gather()
        made = processes.from_first(fit)
        for name, value in made.buffers.items():
            setattr(network, name, value.to(context.compute.device))
        return made.report

    @stops_raise()
    def fit() -> Fitted:
        return passes.fit(network, dataset.labels[labelled], len(dataset.classes), position_L)

    def batches(epoch: int, start: int) -> Iterator[Batch]:
        return context.batches(images, settings.batch_size, start=start)

    def finish(last: Mapping[str, Any]) -> dict[str, Any]:
        told: dict[str, Any] = {name: last.get(name) for name in TOLD}
        return results(samples=len(images), labels_train=len(labelled), **told)

    return Task(
        epochs=2,
        samples=len(images),
        batch_size=settings.batch_size,
        batches=batches,
        step=step,
        end_epoch=end_epoch,
        finish=finish,
        state={"passes": passes},
        notes=passes.notes(),
    )


class Passes:
    """What the two passes add up, and the rows that they keep."""

    def __init__(
        self, context: Context, settings: ClosedFormConfig, network: ClosedForm, images: int, labelled: int
    ) -> None:
        self.settings, self.images, self.labelled, self.seed = settings, images, labelled, context.seed_for("views")
        source = context.dataset.source
        blank = torch.zeros(1, source.channels, source.size, source.size, device=context.compute.device)
        with torch.no_grad():
            features = network.features(context.compute.arrange(blank)).shape[1]
        self.first, self.second = Moments(features), Moments(min(settings.components, features, images))
        self.rows_RLK = self.all_NK = torch.empty(0)
        self.copies = 1 + settings.mirror + (settings.views > 0)
        while self.copies > 1 and self.copies * labelled > settings.kernel_rows:
            self.copies -= 1
        self.classifier = settings.classifier
        if self.classifier in ("auto", "kernel") and labelled > settings.kernel_rows:
            self.classifier = "ridge"
        self.graph = self.classifier in ("auto", "propagation") and images <= GRAPH_IMAGES
        self._draws: dict[int, Tensor] = {}

    def notes(self) -> list[str]:
        """Choices that are left out, and why."""
        if self.classifier != self.settings.classifier:
            most = self.settings.kernel_rows
            return [
                f"more labelled images ({self.labelled:,}) than finetune.kernel_rows={most:,}: the classifier is ridge"
            ]
        if self.classifier == "auto" and not self.graph:
            return [f"more images ({self.images:,}) than a graph takes ({GRAPH_IMAGES:,}): propagation is not tried"]
        return []

    def draws(self, view: int) -> Tensor:
        """Numbers of one view of each image, (N, DRAWS)."""
        if view not in self._draws:
            generator = torch.Generator().manual_seed(self.seed + view)
            self._draws[view] = torch.rand(self.images, DRAWS, generator=generator)
        return self._draws[view]

    def project(self, network: ClosedForm) -> None:
        """The features' deviations and leading components become the network's map."""
        first = total(self.first)
        scale_D = projection.standard_scale(first.covariance().diagonal(), self.settings.floor)
        standard_DD = first.covariance() * scale_D[:, None] * scale_D
        basis_DK = projection.leading_components(standard_DD, len(self.second.sum_D))
        device = next(network.parameters()).device
        network.mean = first.mean().float().to(device)
        network.map = (scale_D[:, None] * basis_DK).float().to(device)
        self.first = Moments(0)
        self._make_room(network.map.shape[1])

    def keep(self, mine: slice, place_B: Tensor, copies_RBK: Tensor) -> None:
        """Keeps the components of labelled images, and of all images where there is to be a graph."""
        known = place_B >= 0
        self.rows_RLK[:, place_B[known]] = copies_RBK[: self.copies, known]
        if self.graph:
            self.all_NK[mine] = copies_RBK[0]

    def gather(self) -> None:
        """Every process gets the sums over all."""
        self.second = total(self.second)
        processes.summed(self.rows_RLK)
        processes.summed(self.all_NK)

    def fit(self, network: ClosedForm, labels_L: Tensor, classes: int, positions_L: Tensor) -> Fitted:
        settings = self.settings
        whitening_KK = None
        if settings.views:
            differences_KK = self.second.products_DD / self.second.count / 2
            whitening_KK = projection.view_whitening(differences_KK, settings.shrinkage)
        return fitted(
            Rows(self.rows_RLK, labels_L, min(self.copies, 1 + settings.mirror), classes),
            network.map.cpu(),
            whitening_KK=whitening_KK,
            everything_NK=self.all_NK if self.graph else None,
            positions_L=positions_L,
            classifier=self.classifier,
            sharpness=settings.sharpness,
            ridge=settings.ridge,
        )

    def _make_room(self, components: int) -> None:
        self.rows_RLK = torch.zeros(self.copies, self.labelled, components)
        if self.graph:
            self.all_NK = torch.zeros(self.images, components)

    def state_dict(self) -> dict[str, Any]:
        rows, everything = (processes.summed(value.clone()) for value in (self.rows_RLK, self.all_NK))
        return {"first": total(self.first).state_dict(), "second": total(self.second).state_dict(),
                "rows": rows, "all": everything}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        kept = 1 if processes.is_first() else 0
        for moments, name in ((self.first, "first"), (self.second, "second")):
            moments.load_state_dict({key: value * kept for key, value in state[name].items()})
        self.rows_RLK, self.all_NK = state["rows"] * kept, state["all"] * kept


def total(moments: Moments) -> Moments:
    """The sums over all processes."""
    whole = Moments(0)
    whole.load_state_dict({name: processes.summed(value.clone()) for name, value in moments.state_dict().items()})
    return whole
