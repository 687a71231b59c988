"""What a stage is given (`Context`) and what it returns (`Task`).

A stage is a function from a Context to a Task of epochs and steps that says what its state is. It reads and writes no
file; `run` runs, resumes and records it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fasthebb_cli.compute import processes
from fasthebb_cli.compute.device import Compute
from fasthebb_cli.compute.graphs import replays
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
    """A batch, or this process's part of one, which may be empty.

    Args:
        images: float32 (B, C, S, S), normalised, on the device.
        labels: int64 (B,), on the device; -1 for an image without a label.
        total: images in the whole batch, over all processes.
    """

    images: Tensor
    labels: Tensor
    total: int


@dataclass
class Context:
    """What a stage is given.

    Args:
        config: the settings of the whole cell.
        stage: the stage's name.
        settings: the stage's own settings.
        network: on the device, with the weights of the stage before it, or random ones.
        statistics: mean and standard deviation (C,) of each channel over the training images.
        untrained: the network's weights are random: no stage before this one has trained it.
        resumed: a checkpoint of this stage is loaded into the network and the task's state.
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

    @property
    def begins(self) -> bool:
        """Whether the network is about to take its very first step."""
        return self.untrained and not self.resumed

    @property
    def replays(self) -> bool:
        """Whether steps are recorded as CUDA graphs and replayed."""
        names = (self.config.model.name, self.config.rule.name)
        return self.settings.recorded and replays(self.config.gpu, self.compute, *names)

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
        """Batches of the given images, normalised.

        Args:
            indices: int64 (N,) of the images.
            epoch: images are shuffled and augmented by the seed and the epoch; None: they come in the given order.
            start: batches to skip.
            part_of: length of a batch -> the part of it that this process reads.
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

    def shuffled(self, indices: Tensor) -> Callable[[int, int], Iterator[Batch]]:
        """The `Task.batches` of a stage that trains: shuffled, augmented, of `settings.batch_size` images."""
        settings = self.settings
        return lambda epoch, start: self.batches(
            indices, settings.batch_size, epoch=epoch, start=start, augmentation=settings.augment
        )

    def seed_for(self, *purpose: object) -> int:
        """The seed of this stage's random numbers for one purpose, the same in every process."""
        return derived_seed(self.config.seed, self.stage, *purpose)


@dataclass
class Task:
    """Epochs of steps.

    Args:
        epochs: how often the images are passed over.
        samples: images in an epoch.
        batch_size: images in a step; the last step may have fewer, or one more.
        batches: (epoch, first step) -> the epoch's batches from that step on.
        step: trains on, or measures, one batch, given the epoch, the step within the epoch and the batch.
        end_epoch: the epoch's metrics, a mapping of numbers that may be nested.
        finish: puts the network into its final state and returns `results`; is given the last epoch's metrics.
        state: all that the next step depends on besides the network's weights, by name: it enters the checkpoint.
        validate: runs after an epoch's last step and yields after each batch. A run that is stopped in between saves
            the state before it, and starts it over when it resumes.
        warnings: an epoch's metrics -> one line for each thing that looks wrong.
        ended: is asked before each epoch: the reason why it and all later ones are left out; empty: they are not.
        resumable: checkpoints may be taken; otherwise a stopped task starts over.
        notes: what a user should know before the first step, one line each.
        backward: how many images an epoch sends through a backward pass, over all processes. An image counts each time,
            and as one, however many layers the pass crosses. 0: the stage makes no backward pass.
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
    backward: int = 0

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return step_count(self.samples, self.batch_size)


def results(
    *,
    samples: int,
    top1: float | None = None,
    top5: float | None = None,
    loss: float | None = None,
    labels_train: int = 0,
    labels_validation: int = 0,
    **more: Any,
) -> dict[str, Any]:
    """What `Task.finish` returns.

    Args:
        samples: images in an epoch, or of the split that was measured.
        top1, top5: in [0, 1]; None: not measured.
        labels_train, labels_validation: number of labels that this stage has read.
        more: what only stages of this kind report.
    """
    scores = {"top1": top1, "top5": top5, "loss": loss}
    return {**scores, "samples": samples, "labels_train": labels_train, "labels_validation": labels_validation, **more}
