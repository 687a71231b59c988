"""Pre-training that teaches nothing: the filters stay random, and batch norm learns the statistics of their outputs.

The control of every rule: what its features are worth beyond those of random filters is what learning adds.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fasthebb_cli.stages.first_step import BATCH_SIZE, CALIBRATION_BATCHES, fit_whitening
from fasthebb_cli.stages.images import all_training_images
from fasthebb_cli.stages.task import Batch, Context, Task, results


def random_filters(context: Context) -> Task:
    network = context.network
    order = torch.Generator().manual_seed(context.seed_for("order", 0))
    images = all_training_images(context.dataset)
    images = images[torch.randperm(len(images), generator=order)][: BATCH_SIZE * CALIBRATION_BATCHES]
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    if context.begins:
        fit_whitening(context)
    network.train()
    for norm in norms:
        norm.momentum = None  # the mean over all batches

    @torch.no_grad()
    def step(epoch: int, step: int, batch: Batch) -> None:
        with context.compute.autocast():
            network(batch.images)

    def finish(last: Mapping[str, Any]) -> dict[str, Any]:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        return results(samples=len(images))

    return Task(
        epochs=1,
        samples=len(images),
        batch_size=BATCH_SIZE,
        batches=lambda epoch, start: context.batches(images, BATCH_SIZE, start=start),
        step=step,
        end_epoch=lambda epoch: {},
        finish=finish,
    )
