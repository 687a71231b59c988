"""Normalisation and augmentation: each image has its own random numbers, from the generator, in the stated ranges."""

import pytest
import torch

from fasthebb_cli.data.transforms import COLOUR, TILT, _affine, _recoloured, _tilted, augment, to_float


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_to_float_normalises_each_channel() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    normalised = to_float(images, torch.tensor([0.5, 0.1, 0.5]), torch.tensor([0.5, 0.1, 0.25]))
    assert normalised.dtype == torch.float32
    assert torch.allclose(normalised.flatten(), torch.tensor([-1.0, 1.0, 2.0]))


@pytest.mark.parametrize("kind", ["light", "hard"])
def test_every_sample_has_its_own_draw(kind: str) -> None:
    image = torch.rand(1, 3, 16, 16, generator=generator())
    augmented = augment(image.expand(8, -1, -1, -1), kind, generator(1))
    assert augmented.shape == (8, 3, 16, 16)
    assert len({tuple(sample.flatten().tolist()) for sample in augmented}) == 8


@pytest.mark.parametrize("kind", ["light", "hard"])
def test_the_draws_depend_on_the_generator_alone(kind: str) -> None:
    images = torch.rand(4, 3, 16, 16, generator=generator())
    first = augment(images, kind, generator(1))
    torch.manual_seed(7)
    assert torch.equal(augment(images, kind, generator(1)), first)
    assert not torch.equal(augment(images, kind, generator(2)), first)


def test_hard_turns_any_way_and_takes_the_colour_from_one_in_ten() -> None:
    maps = _affine(2000, generator(), "hard", mirror=False)
    angle = torch.rad2deg(torch.atan2(maps[:, 1, 0], maps[:, 1, 1]))
    assert angle.min() < -175
    assert angle.max() > 175
    images = torch.randn(2000, 3, 4, 4, generator=generator())
    changed = augment(images, "hard", generator(1))
    grey = (changed - changed.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-6
    assert 0.07 < grey.float().mean() < 0.13
    assert torch.isfinite(changed).all()


def test_none_changes_nothing_and_draws_nothing() -> None:
    images, draws = torch.rand(2, 3, 4, 4), generator()
    assert augment(images, "none", draws) is images
    assert torch.equal(draws.get_state(), generator().get_state())


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="heavy"):
        augment(torch.rand(1, 3, 4, 4), "heavy", generator())


def test_the_maps_are_within_the_stated_ranges() -> None:
    maps = _affine(4000, generator(), "light", mirror=True)
    assert torch.allclose(maps[:, 0, :2].norm(dim=1), maps[:, 1, :2].norm(dim=1)), "not the same scale both ways"
    assert (maps[:, 0, :2] * maps[:, 1, :2]).sum(1).abs().max() < 1e-6, "sheared"
    size = 1 / maps[:, 1, :2].norm(dim=1)
    angle = torch.rad2deg(torch.atan2(maps[:, 1, 0], maps[:, 1, 1]))
    for values, low, high in ((size, 0.75, 1.25), (angle, -10, 10), (maps[:, :, 2] / 2, -0.125, 0.125)):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
    assert 0.47 < (torch.det(maps[:, :, :2]) < 0).float().mean() < 0.53  # flipped


def test_shift_only_moves() -> None:
    maps = _affine(500, generator(), "shift", mirror=False)
    assert torch.equal(maps[:, :, :2], torch.eye(2).expand(500, -1, -1))
    assert maps[:, :, 2].abs().max() <= 0.25
    assert maps[:, :, 2].std() > 0.1


@pytest.mark.parametrize("kind", ["shift", "light"])
def test_without_mirror_nothing_is_flipped(kind: str) -> None:
    assert torch.det(_affine(500, generator(), kind, mirror=False)[:, :, :2]).min() > 0
    assert torch.det(_affine(500, generator(), kind, mirror=True)[:, :, :2]).min() < 0


def test_a_flip_is_exact_and_the_outside_is_reflected(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)

    def with_map(rows: list[list[float]]) -> torch.Tensor:
        maps = torch.tensor([rows])
        monkeypatch.setattr("fasthebb_cli.data.transforms._affine", lambda *arguments, **keywords: maps)
        return augment(image, "light", generator())

    assert torch.allclose(with_map([[-1, 0, 0], [0, 1, 0]]), image.flip(3), atol=1e-5)
    moved = with_map([[1, 0, 0.5], [0, 1, 0]])  # by one of four pixels
    assert torch.allclose(moved, image[..., [1, 2, 3, 3]], atol=1e-5)


def test_tilting_keeps_the_centre_and_brings_one_side_nearer() -> None:
    flat = torch.nn.functional.affine_grid(torch.eye(2, 3).expand(500, -1, -1), [500, 1, 9, 9], align_corners=False)
    places = _tilted(flat, torch.rand(500, 1, 1, 2, generator=generator()))
    assert torch.equal(places[:, 4, 4], torch.zeros(500, 2))
    nearer = places[:, 4, 8, 0] / flat[:, 4, 8, 0]  # near the right edge: x = 8/9
    most = 1 / (1 - TILT * 8 / 9)
    assert 0.99 * most < nearer.max() <= most
    assert not torch.allclose(places[:, 4, 8, 0], -places[:, 4, 0, 0]), "both sides are as near"


def test_colours_change_within_the_stated_ranges() -> None:
    """In images with two grey levels brightness changes the mean, and contrast the difference of the two."""
    images = torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2).expand(2000, 3, 1, 2)
    draws = torch.rand(4, 2000, 1, 1, 1, generator=generator())
    changed = _recoloured(images, draws)
    brightness, contrast = changed.mean((1, 2, 3)), (changed[:, 0, 0, 1] - changed[:, 0, 0, 0]) / 2
    for values, centre in ((brightness, 0.0), (contrast, 1.0)):
        assert centre - COLOUR - 1e-6 <= values.min() < centre - 0.99 * COLOUR
        assert centre + 0.99 * COLOUR < values.max() <= centre + COLOUR + 1e-6
    red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1).expand(2000, -1, -1, -1)
    spread = _recoloured(red, draws).amax((1, 2, 3)) - _recoloured(red, draws).amin((1, 2, 3))
    assert spread.min() == 0
    assert spread.max() > 1.5  # contrast and saturation together
