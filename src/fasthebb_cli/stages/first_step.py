"""What an untrained network needs before its first step: whitening and batch norm statistics. Reads no label."""

from itertools import islice

import torch
from torch import nn

from fasthebb.nets.whitening import Whitening
from fasthebb_cli.stages.task import Context

WHITENING_SAMPLES = 20_000  # images: enough for the covariance of 3,072 pixels
CALIBRATION_BATCHES = 20
BATCH_SIZE = 64


def fit_whitening(context: Context) -> None:
    """Fits the network's whitening layer, if it has one, on the first images of a shuffled epoch."""
    smoothing = context.config.rule.whitening
    layer = next((module for module in context.network.modules() if isinstance(module, Whitening)), None)
    if layer is None or smoothing is None:
        return
    stream = context.batches(context.dataset.train, BATCH_SIZE, epoch=0, part_of=slice)  # every process reads all of it
    layer.fit((batch.images for batch in islice(stream, WHITENING_SAMPLES // BATCH_SIZE)), smoothing)


@torch.no_grad()
def calibrate_batch_norm(context: Context, network: nn.Module | None = None) -> None:
    """Sets batch norm's running statistics to their mean over some batches.

    For features that stay random: no training would ever move their statistics.

    Args:
        network: images -> anything; None: the context's.
    """
    network = network or context.network
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    network.train()
    for batch in islice(context.batches(context.dataset.train, BATCH_SIZE, epoch=0), CALIBRATION_BATCHES):
        network(batch.images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
