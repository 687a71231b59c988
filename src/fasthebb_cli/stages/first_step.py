"""What an untrained network needs before its first step: whitening and batch norm statistics. Reads no label."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from fasthebb.nets.patch_whitening import PatchWhitening
from fasthebb.nets.whitening import Whitening
from fasthebb_cli.stages.task import Context

WHITENING_SAMPLES = 20_000  # images: enough for the covariance of 3,072 pixels
PATCH_WHITENING_SAMPLES = 2_000  # images, of many patches each
CALIBRATION_BATCHES = 20
BATCH_SIZE = 64


def fit_whitening(context: Context) -> None:
    """Fits the network's whitening of images and of patches, if it has them, on the first images of a shuffled epoch.

    Patches are those of whitened images, if the network whitens both.
    """
    modules = list(context.network.modules())
    layer = next((module for module in modules if isinstance(module, Whitening)), None)
    patches = next((module for module in modules if isinstance(module, PatchWhitening)), None)
    smoothing = context.config.rule.whitening
    if layer is not None and smoothing is not None:
        layer.fit(_first_images(context, WHITENING_SAMPLES), smoothing)
    if patches is not None:
        images = _first_images(context, PATCH_WHITENING_SAMPLES)
        patches.fit(images if layer is None else map(layer, images))


def _first_images(context: Context, samples: int) -> Iterator[Tensor]:
    """Batches of training images. Every process reads all of them, so that all fit the same."""
    stream = context.batches(context.dataset.train, BATCH_SIZE, epoch=0, part_of=slice)
    return (batch.images for batch in islice(stream, samples // BATCH_SIZE))


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
