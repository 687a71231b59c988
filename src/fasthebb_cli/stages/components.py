"""The first half of fine-tuning in closed form: one pass over all training images, none of their labels.

It adds up mean and covariance of the features, and the products of the differences between each image's features and
those of its views. From these sums follow the leading components, whitened by views; see `fasthebb.readout.projection`.
Sums add over processes. A second pass computes the components of each image, and the network keeps them for a graph of
all images: each budget of labels uses them again. It reads the features that the first one has kept in memory, as far
as there are any.
"""

from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

from fasthebb.readout import projection
from fasthebb.readout.moments import Moments
from fasthebb.readout.network import ClosedForm
from fasthebb.readout.ridge import Products
from fasthebb.readout.views import VIEWS, draws
from fasthebb_cli.compute import processes
from fasthebb_cli.compute.device import Compute
from fasthebb_cli.data.dataset import Dataset
from fasthebb_cli.data.loading import batch_lengths
from fasthebb_cli.data.source import ImageSource
from fasthebb_cli.settings.closed_form import ComponentsConfig
from fasthebb_cli.stages.first_step import calibrate_batch_norm, fit_whitening
from fasthebb_cli.stages.images import all_training_images
from fasthebb_cli.stages.task import Batch, Context, Task, results

S = TypeVar("S", Moments, Products)
GRAPH_IMAGES = 60_000  # most images of a graph: its similarities are computed for all pairs
KEPT_BYTES = 1 << 28  # most that a model file keeps of components
REMEMBERED_BYTES = 1 << 31  # most features that stay in memory


def components(context: Context) -> Task:
    settings, network = context.settings, context.network
    assert isinstance(settings, ComponentsConfig)
    assert isinstance(network, ClosedForm)
    if context.begins:
        fit_whitening(context)
        calibrate_batch_norm(context, network.features)
    network.eval()
    network.requires_grad_(False)
    images = all_training_images(context.dataset)
    sums = Sums(feature_count(network, context.dataset.source, context.compute))
    view_of, indices = Views(context, settings), Parts(images, settings.batch_size)
    count = min(settings.components, sums.size, len(images))
    rows = AllRows(len(images), count)
    features = Remembered(4 * len(images) * sums.size, context.compute.device)

    @torch.no_grad()
    def step(epoch: int, step: int, batch: Batch) -> None:
        features_BD = features.of(epoch, step, lambda: read(context, network.features, batch.images))
        if epoch == 1:
            rows.fill(indices.places(step), read(context, network.components_of, features_BD))
            return
        sums.features.add(features_BD)
        for number in range(settings.views):
            viewed = view_of(batch, indices.here(step), number)
            sums.differences.add(features_BD - read(context, network.features, viewed))

    def end_epoch(epoch: int) -> dict[str, Any]:
        if epoch == 1:
            network.keep(processes.summed(rows.z_NK).to(context.compute.device), which_images(context.dataset))
            return {"components": count}
        sums.gather()
        mean_D, map_DK = processes.from_first(lambda: _solved(sums, settings, len(images)))
        network.mean, network.map = (value.to(context.compute.device) for value in (mean_D, map_DK))
        return {"components": map_DK.shape[1]}

    def batches(epoch: int, start: int) -> Iterator[Batch]:
        return context.batches(images, settings.batch_size, start=start)

    def finish(last: Mapping[str, Any]) -> dict[str, Any]:
        return results(samples=len(images), components=last.get("components"))

    network.make_blank(sums.size, count, max(len(context.dataset.classes), 1), context.compute.device)
    return Task(
        epochs=2 if are_kept(len(images), count) else 1,
        samples=len(images),
        batch_size=settings.batch_size,
        batches=batches,
        step=step,
        end_epoch=end_epoch,
        finish=finish,
        state={"sums": sums, "rows": rows},
    )


def _solved(sums: "Sums", settings: ComponentsConfig, images: int) -> tuple[Tensor, Tensor]:
    """mean (D,) and map (D, K)."""
    first = sums.features
    scale_D = projection.standard_scale(first.covariance().diagonal(), settings.floor)
    standard_DD = first.covariance() * scale_D[:, None] * scale_D
    map_DK = scale_D[:, None] * projection.leading_components(standard_DD, min(settings.components, images))
    if settings.views:
        differences_KK = map_DK.T @ sums.differences.mean_product() @ map_DK / 2
        map_DK = map_DK @ projection.view_whitening(differences_KK, settings.shrinkage)
    # contiguous, as a checkpoint gives it back: another layout gives products other bits
    return first.mean().float(), map_DK.float().contiguous()


class Sums:
    """Sums over images: of their features, and of the differences between these and the features of views.

    Args:
        size: D.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.features, self.differences = Moments(size), Moments(size)

    def gather(self) -> None:
        """Every process gets the sums over all processes."""
        self.features, self.differences = total(self.features, Moments(0)), total(self.differences, Moments(0))

    def state_dict(self) -> dict[str, Any]:
        parts = {"features": self.features, "differences": self.differences}
        return {name: processes.summands(part.state_dict()) for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.features.load_state_dict(processes.own_summands(state["features"]))
        self.differences.load_state_dict(processes.own_summands(state["differences"]))


class AllRows:
    """The components of N images, each filled by one process. It takes no memory before the first is filled."""

    def __init__(self, images: int, components: int) -> None:
        self.shape = images, components
        self.z_NK = torch.empty(0)

    def fill(self, places: slice, z_BK: Tensor) -> None:
        if not self.z_NK.numel():
            self.z_NK = torch.zeros(self.shape)
        self.z_NK[places] = z_BK.cpu()

    def state_dict(self) -> dict[str, Any]:
        return {"z": processes.summed(self.z_NK.clone())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.z_NK = state["z"] * processes.is_first()  # each place is filled by one process, so the sum is exact


class Remembered:
    """The features of each step, in memory if they are few enough, for the next pass. A checkpoint has none of them.

    Args:
        size: bytes of all of them.
        device: where they are computed.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.fits, self.device = size <= REMEMBERED_BYTES, device
        self.found: dict[int, Tensor] = {}

    def of(self, epoch: int, step: int, compute: Callable[[], Tensor]) -> Tensor:
        if epoch and step in self.found:
            return self.found.pop(step).to(self.device)
        features_BD = compute()
        if self.fits and not epoch:
            self.found[step] = features_BD.cpu()
        return features_BD


def are_kept(images: int, components: int) -> bool:
    """Whether the network keeps the components of all training images: a graph may want them, and they are few."""
    return images <= GRAPH_IMAGES and 4 * images * components <= KEPT_BYTES


def which_images(dataset: Dataset) -> Tensor:
    """A digest of the training images and their order, uint8 (16,)."""
    content = dataset.digest.encode() + all_training_images(dataset).numpy().tobytes()
    return torch.frombuffer(bytearray(blake2b(content, digest_size=16).digest()), dtype=torch.uint8)


class Views:
    """Views of images, reproducible by the seed, the image and the view's number."""

    def __init__(self, context: Context, settings: ComponentsConfig) -> None:
        self.seed, self.kind = context.seed_for("views"), settings.view_kind
        self.mean, self.std = (value.to(context.compute.device) for value in context.statistics)

    def __call__(self, batch: Batch, index_B: Tensor, number: int) -> Tensor:
        draws_BP = draws(self.seed, number, index_B).to(batch.images.device)
        return VIEWS[self.kind](batch.images, draws_BP, self.mean, self.std)


class Parts:
    """Which of some images this process reads in a step, as indices.

    Args:
        images: int64 (N,), in the order in which they are read.
    """

    def __init__(self, images: Tensor, batch_size: int) -> None:
        self.images, self.lengths = images, batch_lengths(len(images), batch_size)
        self.starts = [0, *accumulate(self.lengths)]

    def here(self, step: int) -> Tensor:
        return self.images[self.places(step)]

    def places(self, step: int) -> slice:
        """Where these images are among all."""
        part = processes.part_of(self.lengths[step])
        return slice(self.starts[step] + part.start, self.starts[step] + part.stop)


def read(context: Context, part: Any, images: Tensor) -> Tensor:
    """What a part of the network gives, in float32: sums over images are not for bfloat16."""
    with context.compute.autocast():
        found: Tensor = part(images).float()
    return found


def feature_count(network: ClosedForm, source: ImageSource, compute: Compute) -> int:
    """D."""
    blank = torch.zeros(1, source.channels, source.size, source.size, device=compute.device)
    with torch.no_grad():
        return int(network.features(compute.arrange(blank)).shape[1])


def total(sums: S, whole: S) -> S:
    """`whole`, with the sums over all processes."""
    whole.load_state_dict({name: processes.summed(value.clone()) for name, value in sums.state_dict().items()})
    return whole
