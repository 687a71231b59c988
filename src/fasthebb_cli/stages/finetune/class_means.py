"""Fine-tuning by the Hebbian classifier: on frozen features, a class's weights are the mean of its inputs.

No gradient is computed. In each step the inputs of the classifier's linear layer are added up by class:

    sum_c += sum of x over the images of class c in the batch,    w_c = sum_c / |sum_c|,    bias = 0

An image's scores x.w / |w| do not depend on the length of a mean, so the directions of the sums are enough. A class
without an image scores 0. The loss is only reported. Source: the rule `hebbian_classifier`, see `fasthebb.rules`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasthebb.nets.readout import output_layer
from fasthebb_cli.compute import processes
from fasthebb_cli.compute.gradients import micro_batched
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.finetune import FinetuneConfig
from fasthebb_cli.stages.finetune.layers import layers_of, phases_of, set_frozen
from fasthebb_cli.stages.finetune.loss import loss_and_hits
from fasthebb_cli.stages.first_step import calibrate_batch_norm, fit_whitening
from fasthebb_cli.stages.images import labelled_images
from fasthebb_cli.stages.selection import Selection
from fasthebb_cli.stages.task import Batch, Context, Task, results
from fasthebb_cli.stages.totals import Totals, check_loss


def by_class_means(context: Context) -> Task:
    settings, network, compute = context.settings, context.network, context.compute
    assert isinstance(settings, FinetuneConfig)
    indices = labelled_images(context.dataset, context.config)
    layers = layers_of(network, settings)
    phases = phases_of(settings, len(indices), untrained=context.untrained)
    means = ClassMeans(network)
    totals = Totals(compute.device)
    selection = Selection(context, settings)
    forward = micro_batched(network, context.config.gpu.micro_batch)
    if context.begins:
        fit_whitening(context)
        calibrate_batch_norm(context)
    set_frozen(layers.features, frozen=True)
    set_frozen(layers.classifier, frozen=True)

    @torch.no_grad()
    def step(epoch: int, step: int, batch: Batch) -> None:
        count = len(batch.labels)
        with inputs_of(means.layer) as inputs, compute.autocast():
            scores = forward(batch.images)
        loss, hits = loss_and_hits(scores, batch.labels)
        means.add(torch.cat(inputs), batch.labels)
        totals.add(train_loss=loss * count, train_top1=hits, samples=count)

    def end_epoch(epoch: int) -> dict[str, Any]:
        metrics = totals.means()
        check_loss(metrics["train_loss"], epoch, "finetune.lr")
        return metrics | selection.end_epoch()

    def finish(last: Mapping[str, Any]) -> dict[str, Any]:
        selection.finish()
        network.requires_grad_(True)
        samples = len(indices)
        return results(loss=last.get("train_loss"), samples=samples, labels_train=samples, **selection.results())

    return Task(
        epochs=phases.epochs,
        samples=len(indices),
        batch_size=settings.batch_size,
        batches=context.shuffled(indices),
        step=step,
        validate=selection.validate,
        end_epoch=end_epoch,
        finish=finish,
        state={"means": means, "totals": totals, "selection": selection},
        ended=selection.ended,
    )


class ClassMeans:
    """Sums (C, F) of the inputs of a network's output layer by class; the layer's weights are their directions.

    Raises:
        InputError: the network's classifier has no linear layer.
    """

    def __init__(self, network: nn.Module) -> None:
        try:
            _, self.layer = output_layer(network)
        except ValueError as error:
            raise InputError(f"finetune.classifier=hebbian: {error}") from error
        self.sums_CF = torch.zeros_like(self.layer.weight)

    @torch.no_grad()
    def add(self, inputs_BF: Tensor, labels_B: Tensor) -> None:
        """Adds a batch, of which each process has a part, and sets the layer's weights."""
        inputs_BF = inputs_BF.to(self.sums_CF.dtype)
        self.sums_CF += processes.summed(torch.zeros_like(self.sums_CF).index_add_(0, labels_B, inputs_BF))
        self.layer.weight.copy_(F.normalize(self.sums_CF, dim=1))
        if self.layer.bias is not None:
            self.layer.bias.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums_CF}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sums_CF.copy_(state["sums"])


@contextmanager
def inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """A list that every forward pass of the layer adds its input to: one micro-batch after the other."""
    inputs: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        yield inputs
    finally:
        hook.remove()
