"""A variational autoencoder around a network's own layers: what backprop can learn from images without labels.

The encoder is the network without its classifier, then a mean and a log variance of each latent. The decoder mirrors
it: transposed convolutions, and unpooling that puts each value where the pooling found it. After training, the decoder
is thrown away. Source: the baseline of Lagani et al. 2022 (arXiv 2207.03172), after Kingma and Welling 2014.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIRRORED = (
    nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.Flatten, nn.ReLU, nn.Tanh, nn.Dropout, nn.modules.batchnorm._BatchNorm
)  # fmt: skip


class VariationalAutoencoder(nn.Module):
    """Encoder, latents and mirrored decoder.

    Args:
        encoder: a network of nested nn.Sequential. Its layers are shared; children called `classifier` and
            `whitening` are left out.
        channels, size: of the input of the encoder's first layer, (B, channels, size, size).
        latents: number of dimensions of the code, >= 1.

    Raises:
        ValueError: latents < 1, or a layer that the decoder cannot mirror.
    """

    def __init__(self, encoder: nn.Module, *, channels: int, size: int, latents: int) -> None:
        super().__init__()
        if latents < 1:
            raise ValueError(f"latents must be at least 1, not {latents}")
        self.encoder = nn.ModuleList(_layers(encoder))
        device = next(encoder.parameters()).device
        shapes = self._shapes(torch.zeros(1, channels, size, size, device=device))
        width = shapes[-1].numel()
        self.latents = latents
        self.mean, self.log_variance = nn.Linear(width, latents), nn.Linear(width, latents)
        self.expand = nn.Sequential(nn.Linear(latents, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())
        self.shapes = shapes
        first = next(layer for layer in self.encoder if isinstance(layer, nn.Conv2d | nn.Linear))
        self.mirrors = nn.ModuleList(_mirror(layer) for layer in self.encoder)
        self.after = nn.ModuleList(
            _after(layer) if isinstance(layer, nn.Conv2d | nn.Linear) and layer is not first else nn.Identity()
            for layer in self.encoder
        )

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The reconstruction (B, C, S, S) from one sample of the code, and the code's mean and log variance.

        Args:
            images: (B, C, S, S).
            noise: standard normal samples, (B, latents).

        Returns:
            Reconstruction (B, C, S, S), mean (B, latents), log variance (B, latents).
        """
        x, places = images, []
        for layer in self.encoder:
            if isinstance(layer, nn.MaxPool2d):
                x, place = F.max_pool2d(x, layer.kernel_size, layer.stride, layer.padding, return_indices=True)
                places.append(place)
            else:
                x = layer(x)
        flat = x.flatten(1)
        mean, log_variance = self.mean(flat), self.log_variance(flat)
        x = self.expand(mean + noise * (0.5 * log_variance).exp()).unflatten(1, self.shapes[-1])
        layers = zip(self.encoder, self.mirrors, self.after, self.shapes[:-1], strict=True)
        for layer, mirror, after, shape in reversed(list(layers)):
            if isinstance(layer, nn.MaxPool2d):
                x = _unpooled(x, places.pop(), shape)
            elif isinstance(layer, nn.Conv2d):
                x = after(mirror(x, output_size=list(shape[1:])))
            elif isinstance(layer, nn.Flatten):
                x = x.unflatten(1, shape)
            else:
                x = after(mirror(x))
        return x, mean, log_variance

    @torch.no_grad()
    def _shapes(self, x: Tensor) -> list[torch.Size]:
        """Shape of one image before each layer and after the last; batch norm's statistics stay as they are."""
        modes = [module.training for module in self.encoder]
        shapes = [x.shape[1:]]
        for layer in self.encoder:
            x = layer.eval()(x)
            shapes.append(x.shape[1:])
        for layer, mode in zip(self.encoder, modes, strict=True):
            layer.train(mode)
        return shapes


def loss_terms(images: Tensor, reconstruction: Tensor, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """The squared error and the code's divergence from a standard normal distribution.

    (x - x')^2 and 0.5 (mean^2 + variance - log variance - 1), each the sum within an image and the mean over images;
    0 for an empty batch. Their sum is the negative evidence lower bound for pixels with variance 1/2, up to a constant
    (Kingma and Welling 2014, eq. 10).
    """
    error = (reconstruction.float() - images.float()).square().flatten(1).sum(1)
    mean, log_variance = mean.float(), log_variance.float()
    divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)
    return (error.mean(), divergence.mean()) if len(images) else (error.sum(), divergence.sum())


def _mirror(layer: nn.Module) -> nn.Module:
    """A layer that turns the output's shape back into the input's shape."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.out_features, layer.in_features)
    if isinstance(layer, nn.Conv2d):
        reach = [d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        named = {"same": tuple(reach), "valid": (0, 0)}
        sizes: dict[str, Any] = {
            "kernel_size": layer.kernel_size,
            "stride": layer.stride,
            "padding": named[layer.padding] if isinstance(layer.padding, str) else layer.padding,
            "dilation": layer.dilation,
        }
        return nn.ConvTranspose2d(layer.out_channels, layer.in_channels, groups=layer.groups, **sizes)
    return nn.Identity()


def _after(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return nn.Sequential(nn.BatchNorm1d(layer.in_features), nn.ReLU(inplace=True))
    return nn.Sequential(nn.BatchNorm2d(layer.in_channels), nn.ReLU(inplace=True))


def _unpooled(x: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
    """Maps of shape (C, H, W) with each value where the pooling found it, and 0 elsewhere."""
    empty = x.new_zeros(len(x), shape[0], shape[1] * shape[2])
    filled: Tensor = empty.scatter(2, places.flatten(2), x.flatten(2)).unflatten(2, shape[1:])
    return filled


def _layers(network: nn.Module) -> Iterator[nn.Module]:
    for name, module in network.named_children():
        if name in ("classifier", "whitening"):
            continue
        if type(module) is nn.Sequential:
            yield from _layers(module)
        elif isinstance(module, MIRRORED):
            yield module
        else:
            raise ValueError(
                f"a {type(module).__name__} has no mirror image; the network must be a sequence of Conv2d, Linear, "
                "MaxPool2d, Flatten, batch norm, ReLU, Tanh and Dropout, as conv6 and conv10 are"
            )
