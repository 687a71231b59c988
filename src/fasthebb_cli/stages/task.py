"""What a stage is: a task of epochs and steps that says what its state is. Running, resuming and recording it is
the business of `run`; a stage reads no file and writes none.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fasthebb_cli.compute import processes
from fasthebb_cli.compute.device import Compute, replays
from fasthebb_cli.compute.seeds import derived_seed
from fasthebb_cli.data.dataset import Dataset
from fasthebb_cli.data.loading import batch_lengths, batches, step_count
from fasthebb_cli.data.transforms import augment, to_float
from fasthebb_cli.settings.config import Config
from fasthebb_cli.settings.kind import StageSettings


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Any) -> Any: ...


@dataclass
class Batch:
    """Normalised float images (B, C, S, S) and their labels (B,), on the device; -1 where there is no label.

    Of a run of several processes each has a part, which may be empty, of a batch of `total` images.
    """

    images: Tensor
    labels: Tensor
    total: int


@dataclass
class Context:
    """What a stage is given.

    Args:
        stage, settings: the stage's name and its own settings; `config` is the whole cell.
        network: on the device, with the weights of the stage before (or fresh ones).
        statistics: mean and standard deviation of each channel over the training images.
        untrained: no stage before has taught the network anything.
        resumed: the stage goes on from a checkpoint, which is loaded over the network.
        labels_train, labels_validation: labels that the network has seen so far.
    """

    config: Config
    stage: str
    settings: StageSettings
    dataset: Dataset
    network: nn.Module
    compute: Compute
    statistics: tuple[Tensor, Tensor]
    untrained: bool
    resumed: bool
    labels_train: int = 0
    labels_validation: int = 0

    @property
    def begins(self) -> bool:
        """The network is about to take its very first step."""
        return self.untrained and not self.resumed

    @property
    def replays(self) -> bool:
        """Whether steps are recorded and replayed."""
        return replays(self.config.gpu, self.compute, self.config.model.name, self.config.rule.name)

    def batches(
        self,
        indices: Tensor,
        batch_size: int,
        *,
        epoch: int | None = None,
        start: int = 0,
        augmentation: str = "none",
        part_of: Callable[[int], slice] = processes.part_of,
    ) -> Iterator[Batch]:
        """Batches of the given images; shuffled and augmented by the seed and the epoch, in order without an epoch.

        Args:
            part_of: what this process has of a batch.
        """
        order = None if epoch is None else self.seed_for("order", epoch)
        mean, std = (value.to(self.compute.device) for value in self.statistics)
        source = self.dataset.source
        stream = batches(
            source,
            indices,
            batch_size=batch_size,
            device=self.compute.device,
            order_seed=order,
            start=start,
            workers=self.config.gpu.workers,
            part_of=part_of,
        )
        lengths = batch_lengths(len(indices), batch_size)
        for step, (pixels, chosen) in enumerate(stream, start):
            images, total = to_float(pixels, mean, std), lengths[step]
            if augmentation != "none":
                draws = torch.Generator().manual_seed(self.seed_for("augment", epoch, step))
                images = augment(
                    images, augmentation, draws, mirror=self.config.dataset.mirror, total=total, part=part_of(total)
                )
            labels = self.dataset.labels[chosen.cpu()].to(self.compute.device)
            yield Batch(self.compute.arrange(images), labels, total)

    def seed_for(self, *purpose: object) -> int:
        """The seed of what this stage draws for one purpose, the same in every process."""
        return derived_seed(self.config.seed, self.stage, *purpose)

    def shuffled(self, indices: Tensor) -> Callable[[int, int], Iterator[Batch]]:
        """For `Task.batches`: an epoch's batches from a step on, as a stage that learns has them."""
        settings = self.settings
        return lambda epoch, start: self.batches(
            indices, settings.batch_size, epoch=epoch, start=start, augmentation=settings.augment
        )


@dataclass
class Task:
    """Epochs of steps.

    Args:
        epochs: number of passes.
        samples: images in a pass.
        batch_size: images in a step (the last one may have fewer).
        batches: the batches of an epoch from a step on.
        step: does one, given epoch, step within it and the batch.
        validate: looks at other images after an epoch's last step, a batch at a time; the run may be stopped and saved
            in between, and then looks at all of them again.
        end_epoch: metrics of the epoch, a flat or nested mapping of numbers.
        finish: given the last epoch's metrics, puts the network into its final state and gives `top1`, `top5`, `loss`,
            label counts and so on.
        state: everything besides the network's weights that the next step depends on.
        warnings: of the epoch just ended, one line each.
        ended: before an epoch, why it and those after it are left out; empty: they are not.
        resumable: a checkpoint may be taken within; else a stopped task starts over, unless it is done.
        notes: what a user should know before it starts, one line each.
    """

    epochs: int
    samples: int
    batch_size: int
    batches: Callable[[int, int], Iterator[Batch]]
    step: Callable[[int, int, Batch], None]
    end_epoch: Callable[[int], dict[str, Any]]
    finish: Callable[[Mapping[str, Any]], dict[str, Any]]
    state: dict[str, Stateful] = field(default_factory=dict)
    validate: Callable[[int], Iterator[None]] = lambda epoch: iter(())
    warnings: Callable[[Mapping[str, Any]], list[str]] = lambda metrics: []
    ended: Callable[[], str] = lambda: ""
    resumable: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return step_count(self.samples, self.batch_size)


class Totals:
    """Running sums over samples; means are taken once, at the end, so that short batches weigh right.

    Each process adds up its own; whoever reads them gets the sum over all.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor | float) -> None:
        for name, value in values.items():
            value = torch.as_tensor(value, dtype=torch.float64 if self.device.type != "mps" else torch.float32)
            self.sums[name] = self.sums.get(name, torch.zeros_like(value, device=self.device)) + value.to(self.device)

    def means(self) -> dict[str, float]:
        """Every sum divided by the sum called `samples`; the totals start again."""
        sums = self.state_dict()
        samples = float(sums.pop("samples"))
        self.sums = {}
        return {name: float(value) / samples for name, value in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return {name: processes.summed(value.clone()) for name, value in self.sums.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The first process goes on from the sum, the others from nothing."""
        kept = 1 if processes.is_first() else 0
        self.sums = {name: value.to(self.device) * kept for name, value in state.items()}
