"""ZCA whitening as the first layer of a network, so that it is stored, moved and reused with the weights.

Competitive rules need it: the raw pixels of a patch are strongly correlated, and so the units' scores would be too.
Images larger than BLOCK are whitened block by block, all with the same matrix (32 x 32 pixels in the papers).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasthebb.precision import full_precision

BLOCK = 32


class Whitening(nn.Module):
    """x -> (x - mean) M for every block x of an image, where M is symmetric. Before `fit` it is the identity.

    Args:
        channels, size: C and S of the images, (B, C, S, S).
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
        with full_precision(images):  # bf16 would lose directions of small variance
            white_ND = (blocks_ND.to(self.mean.dtype) - self.mean) @ self.matrix
        return self._assemble(white_ND, images)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor], smoothing: float) -> None:
        """M = (covariance + smoothing x mean variance)^(-1/2), over the blocks of all images.

        Args:
            batches: images, (B, C, S, S) each.
            smoothing: > 0; it limits the gain for directions of small variance, which are mostly noise.
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
        """(B, C, S, S) -> (B x blocks, C x block x block); the right and lower edges are padded by reflection."""
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
