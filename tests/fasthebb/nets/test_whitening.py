"""Whitening makes pixels uncorrelated and of equal variance, for any image size; it is stored with the weights."""

import pytest
import torch

from fasthebb.nets.whitening import Whitening


def correlated(count: int, size: int) -> torch.Tensor:
    noise = torch.randn(count, 2, size, size, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1) + 0.5


def test_whitened_pixels_are_uncorrelated() -> None:
    layer, images = Whitening(2, 4), correlated(5000, 4)
    layer.fit(images.split(500), 1e-6)
    covariance = torch.cov(layer(images).flatten(1).T)
    assert torch.allclose(covariance, torch.eye(32), atol=1e-2)
    assert not torch.allclose(torch.cov(images.flatten(1).T), torch.eye(32), atol=0.5)


@pytest.mark.parametrize("size", [32, 40, 64])
def test_unfitted_it_is_the_identity_for_any_size(size: int) -> None:
    images = torch.randn(2, 1, size, size)
    assert torch.allclose(Whitening(1, size)(images), images, atol=1e-6)


def test_it_travels_with_the_weights() -> None:
    layer, images = Whitening(2, 4), correlated(500, 4)
    layer.fit([images], 0.1)
    other = Whitening(2, 4)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(images), layer(images))


def test_it_runs_on_the_meta_device_where_networks_are_tried() -> None:
    """torch has no autocast for that device."""
    with torch.device("meta"):
        assert Whitening(3, 40)(torch.empty(2, 3, 40, 40)).shape == (2, 3, 40, 40)
