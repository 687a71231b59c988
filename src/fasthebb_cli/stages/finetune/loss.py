"""The loss of fine-tuning, and the hits that are counted beside it. B images, C classes."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from fasthebb.readout.candidates import balanced
from fasthebb_cli.settings.finetune import FinetuneConfig
from fasthebb_cli.stages.images import labelled_images
from fasthebb_cli.stages.task import Context


def losses_of(
    forward: Callable[[Tensor], Tensor], context: Context
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """For `Backprop`: images and labels (B,) of a batch -> loss and hits of the scores (B, C) that `forward` gives."""
    weight_C = _class_weights(context)

    def losses(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with context.compute.autocast():
            scores = forward(images)
        return loss_and_hits(scores, labels, weight_C)

    return losses


def _class_weights(context: Context) -> Tensor | None:
    """What an image of each class counts (C,); None: the same for all."""
    settings, dataset = context.settings, context.dataset
    if not isinstance(settings, FinetuneConfig) or not settings.balance:
        return None
    labels = dataset.labels[labelled_images(dataset, context.config)]
    return balanced(labels, len(dataset.classes)).float().to(context.compute.device)


def loss_and_hits(scores_BC: Tensor, labels_B: Tensor, weight_C: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy, and the number of images whose label has the highest score. Both are 0 for an empty batch.

    Args:
        weight_C: what an image of each class counts; None: 1. The mean is over images, so that parts of a batch add up.
    """
    if not len(labels_B):
        loss = scores_BC.sum()
    elif weight_C is None:
        loss = F.cross_entropy(scores_BC.float(), labels_B)
    else:
        loss = F.cross_entropy(scores_BC.float(), labels_B, weight_C, reduction="sum") / len(labels_B)
    return loss, (scores_BC.argmax(1) == labels_B).sum()
