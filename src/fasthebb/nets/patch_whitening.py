"""Every patch of an image normalised for contrast and whitened, as maps: by convolutions, so no patch is unfolded.

    q = (p - mean of p) / sqrt(variance of p + CONTRAST)        for each patch p of D = C k k pixels
    output = (q - mu) M,  M = (covariance of q + smoothing x mean variance)^(-1/2)

Source: the preprocessing of Coates, Ng and Lee 2011 (An analysis of single-layer networks in unsupervised feature
learning). Because (p - mean of p) M is linear in p, it is one convolution; mean and variance of p are box filters.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasthebb.precision import full_precision

CONTRAST = 0.0025  # the paper's 10 for pixels in 0..255, for pixels that have been divided by their deviation, about 63
FIT_PATCHES = 2**17  # that are unfolded at a time while fitting, and never afterwards


class PatchWhitening(nn.Module):
    """Images (B, C, H, W) -> whitened patches (B, C k k, positions down, positions across). Before `fit`, M is 1.

    Args:
        channels: C.
        kernel: k, size of the square patches.
        stride: distance of neighbouring patches.
        smoothing: > 0; it limits the gain for directions of small variance, which are mostly noise.
    """

    matrix: Tensor  # M, (D, D), symmetric
    mean: Tensor  # mu, (D,)

    def __init__(self, channels: int, kernel: int, stride: int, smoothing: float) -> None:
        super().__init__()
        self.channels, self.kernel, self.stride, self.smoothing = channels, kernel, stride, smoothing
        inputs = channels * kernel**2
        self.register_buffer("matrix", torch.eye(inputs))
        self.register_buffer("mean", torch.zeros(inputs))

    def forward(self, images: Tensor) -> Tensor:
        with full_precision(images):  # bf16 would lose directions of small variance
            x = images.to(self.matrix.dtype)
            centred_DD = self.matrix - self.matrix.mean(0)  # subtracts the patch's mean before M
            kernels = centred_DD.T.reshape(-1, self.channels, self.kernel, self.kernel)
            mean = F.avg_pool2d(x.mean(1, keepdim=True), self.kernel, self.stride)
            square = F.avg_pool2d(x.square().mean(1, keepdim=True), self.kernel, self.stride)
            deviation = ((square - mean.square()).clamp_min(0) + CONTRAST).sqrt()
            offset = (self.mean @ self.matrix).reshape(-1, 1, 1)
            projected = F.conv2d(x, kernels, stride=self.stride)
            white: Tensor = torch.addcdiv(-offset, projected, deviation)
        return white

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Sets mu and M from all patches of the images, (B, C, H, W) each; sums over patches, in float64."""
        inputs = len(self.mean)
        total, squares, count = torch.zeros(inputs).double(), torch.zeros(inputs, inputs).double(), 0
        for images in batches:
            positions = F.avg_pool2d(images[:1, :1], self.kernel, self.stride).numel()
            for piece in images.cpu().split(max(1, FIT_PATCHES // positions)):
                q_ND = self._normalised(piece)
                total += q_ND.sum(0).double()
                squares += (q_ND.T @ q_ND).double()
                count += len(q_ND)
        mean = total / count
        covariance = (squares / count - torch.outer(mean, mean)).float()
        values, vectors = torch.linalg.eigh(covariance)
        scale = (values.clamp_min(0) + self.smoothing * values.mean()).rsqrt()
        self.matrix.copy_((vectors * scale) @ vectors.T)
        self.mean.copy_(mean)

    def _normalised(self, images: Tensor) -> Tensor:
        """q of every patch, (N, D)."""
        p_ND = F.unfold(images.float(), self.kernel, stride=self.stride).movedim(1, 2).flatten(0, 1)
        p_ND = p_ND - p_ND.mean(1, keepdim=True)
        normalised: Tensor = p_ND / (p_ND.square().mean(1, keepdim=True) + CONTRAST).sqrt()
        return normalised
