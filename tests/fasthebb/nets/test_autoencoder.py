"""The autoencoder mirrors any plain network, and its loss is the evidence lower bound."""

import math

import pytest
import torch
from torch import nn

from fasthebb.nets.autoencoder import VariationalAutoencoder, loss_terms
from fasthebb.nets.networks import conv6, conv10


@pytest.mark.parametrize(("make", "size"), [(conv6, 32), (conv6, 29), (conv10, 210)])
def test_a_network_is_mirrored_to_the_pixel(make: type, size: int) -> None:
    """Also if pooling leaves out a row (29 pixels). Building copies and changes nothing of the encoder."""
    network = make(channels=3, size=size, classes=10, width=0.02).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    autoencoder = VariationalAutoencoder(network, channels=3, size=size, latents=5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    images = torch.randn(2, 3, size, size)
    reconstruction, mean, log_variance = autoencoder(images, torch.randn(2, 5))
    assert reconstruction.shape == images.shape
    assert mean.shape == log_variance.shape == (2, 5)
    error, divergence = loss_terms(images, reconstruction, mean, log_variance)
    (error + divergence).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == name.startswith("classifier"), name


def test_strides_padding_and_dilation_are_mirrored() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding="same", dilation=2, groups=2)
    )
    autoencoder = VariationalAutoencoder(network, channels=3, size=12, latents=2)
    reconstruction, _, _ = autoencoder(torch.randn(2, 3, 12, 12), torch.randn(2, 2))
    assert reconstruction.shape == (2, 3, 12, 12)


def test_values_return_to_where_the_pooling_found_them() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.MaxPool2d(2))
    autoencoder = VariationalAutoencoder(network, channels=1, size=4, latents=3).eval()
    with torch.no_grad():
        for layer in (autoencoder.encoder[0], autoencoder.mirrors[0]):
            assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
            layer.weight.fill_(1)
        assert isinstance(autoencoder.mirrors[0], nn.ConvTranspose2d)
        assert autoencoder.mirrors[0].bias is not None
        autoencoder.mirrors[0].bias.zero_()
    images = torch.rand(1, 1, 4, 4)
    with torch.no_grad():
        reconstruction, _, _ = autoencoder(images, torch.randn(1, 3))
    kept = torch.zeros(16)
    for top, left in ((0, 0), (0, 2), (2, 0), (2, 2)):
        block = images[0, 0, top : top + 2, left : left + 2].flatten()
        row, column = divmod(int(block.argmax()), 2)
        kept[4 * (top + row) + left + column] = 1
    assert ((reconstruction.flatten() != 0) <= (kept != 0)).all()


def test_the_loss_is_zero_for_a_perfect_image_and_a_standard_code() -> None:
    images, zero = torch.randn(3, 1, 2, 2), torch.zeros(3, 4)
    error, divergence = loss_terms(images, images, zero, zero)
    assert error == divergence == 0
    assert [float(term) for term in loss_terms(images[:0], images[:0], zero[:0], zero[:0])] == [0, 0]
    error, divergence = loss_terms(images, images + 1, zero + 2, zero + math.log(3))
    torch.testing.assert_close(error, torch.tensor(4.0))
    torch.testing.assert_close(divergence, torch.tensor(4 * 0.5 * (4 + 3 - math.log(3) - 1)))


def test_a_layer_without_mirror_image_is_named() -> None:
    with pytest.raises(ValueError, match="AvgPool2d has no mirror image"):
        VariationalAutoencoder(nn.Sequential(nn.AvgPool2d(2)), channels=1, size=4, latents=1)


def test_it_is_made_where_the_network_is() -> None:
    with torch.device("meta"):
        network = conv6(channels=3, size=32, classes=10, width=0.1)
    made = VariationalAutoencoder(network, channels=3, size=32, latents=4)
    assert made.shapes[-1] == (410,)
