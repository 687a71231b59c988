"""ZCA whitening as the first layer of a network, so that it is stored, moved and reused with the weights.

Competitive rules need it: the raw pixels of a patch all rise and fall together, and so would the units' scores.
Images larger than BLOCK are whitened block by block with one matrix (the papers' 32 x 32).
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 32


class Whitening(nn.Module):
    """x -> (x - mean) M for every block of an image, with M symmetric; the identity until it is fitted.

    Args:
        channels, size: of the images (B, C, S, S).
    """

    matrix: Tensor
    mean: Tensor

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.block = min(size, BLOCK)
        inputs = channels * self.block**2
        self.register_buffer("matrix", torch.eye(inputs))
        self.register_buffer("mean", torch.zeros(inputs))

    def forward(self, images: Tensor) -> Tensor:
        blocks_ND = self._blocks(images)
        with _full_precision(images):
            white_ND = (blocks_ND.to(self.mean.dtype) - self.mean) @ self.matrix
        return self._assemble(white_ND, images)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor], smoothing: float) -> None:
        """M = (covariance + smoothing x mean variance)^(-1/2) over the blocks of all images.

        Args:
            smoothing: > 0; keeps directions without variance, mostly noise, from being blown up.
        """
        inputs = len(self.mean)
        total, squares, count = torch.zeros(inputs).double(), torch.zeros(inputs, inputs).double(), 0
        for images in batches:
            blocks_ND = self._blocks(images).cpu()
            total += blocks_ND.sum(0).double()
            squares += (blocks_ND.T @ blocks_ND).double()
            count += len(blocks_ND)
        mean = total / count
        covariance = (squares / count - torch.outer(mean, mean)).float()
        values, vectors = torch.linalg.eigh(covariance)
        scale = (values.clamp_min(0) + smoothing * values.mean()).rsqrt()
        self.matrix.copy_((vectors * scale) @ vectors.T)
        self.mean.copy_(mean)

    def _blocks(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> (B x blocks, C x block x block), the right and lower edges reflected to whole blocks."""
        channels, height, width = images.shape[1:]
        missing = (0, -width % self.block, 0, -height % self.block)
        if any(missing):
            images = F.pad(images, missing, mode="reflect")
        cut = images.unflatten(3, (-1, self.block)).unflatten(2, (-1, self.block))
        blocks_ND: Tensor = cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels * self.block**2)
        return blocks_ND

    def _assemble(self, blocks_ND: Tensor, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        rows, columns = -(-height // self.block), -(-width // self.block)
        cut = blocks_ND.reshape(batch, rows, columns, channels, self.block, self.block).permute(0, 3, 1, 4, 2, 5)
        whole = cut.reshape(batch, channels, rows * self.block, columns * self.block)[:, :, :height, :width]
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        result: Tensor = whole.contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )
        return result


def _full_precision(x: Tensor) -> AbstractContextManager[object]:
    """No autocast within: bf16 would undo what smoothing keeps. The meta device knows no autocast, and needs none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
