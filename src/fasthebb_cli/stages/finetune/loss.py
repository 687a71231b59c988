"""The loss of fine-tuning, and the hits that are counted beside it. B images, C classes."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from fasthebb_cli.stages.task import Context


def losses_of(
    forward: Callable[[Tensor], Tensor], context: Context
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """For `Backprop`: images and labels (B,) of a batch -> loss and hits of the scores (B, C) that `forward` gives."""

    def losses(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with context.compute.autocast():
            scores = forward(images)
        return loss_and_hits(scores, labels)

    return losses


def loss_and_hits(scores_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy, and the number of images whose label has the highest score. Both are 0 for an empty batch."""
    loss = F.cross_entropy(scores_BC.float(), labels_B) if len(labels_B) else scores_BC.sum()
    return loss, (scores_BC.argmax(1) == labels_B).sum()
