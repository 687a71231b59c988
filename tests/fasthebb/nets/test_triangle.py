"""The network of Triangle units: its patches against naive loops, its units, and that it is fitted, stored and read."""

from collections.abc import Callable
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fasthebb.model_file import load_model
from fasthebb.nets.patch_whitening import CONTRAST, FIT_PATCHES, PatchWhitening
from fasthebb.nets.triangle import NegativeDistance, triangle
from fasthebb_cli.data.dataset import load_dataset
from tests.conftest import Ran, loaded

Command = Callable[..., Ran]
SMALL = ("model=triangle", "rule=kmeans", "model.width=0.04", "pretrain.epochs=1", "pretrain.batch_size=100")


def images(count: int, channels: int = 2, size: int = 9) -> Tensor:
    """Neighbouring pixels are alike, as in photographs; means and contrasts of the images differ."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, channels, size, size, generator=generator)
    contrast = torch.rand(count, 1, 1, 1, generator=generator)
    return torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1) * contrast + 5 * contrast - 2


def normalised_patches(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Every patch minus its mean over its deviation, in the order image, row, column: (N, C k k)."""
    rows = []
    for image in x:
        for top in range(0, image.shape[1] - kernel + 1, stride):
            for left in range(0, image.shape[2] - kernel + 1, stride):
                patch = image[:, top : top + kernel, left : left + kernel].flatten()
                centred = patch - patch.mean()
                rows.append(centred / (centred.square().mean() + CONTRAST).sqrt())
    return torch.stack(rows)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (4, 2)])
def test_maps_are_the_whitened_patches_of_naive_loops(kernel: int, stride: int) -> None:
    layer, x = PatchWhitening(2, kernel, stride, 0.1), images(40)
    layer.fit(x.split(16))
    q_ND = normalised_patches(x.double(), kernel, stride)
    mean = q_ND.mean(0)
    values, vectors = torch.linalg.eigh((q_ND - mean).T @ (q_ND - mean) / len(q_ND))
    wanted_ND = (q_ND - mean) @ (vectors * (values + 0.1 * values.mean()).rsqrt()) @ vectors.T
    found_ND = layer(x).movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(found_ND.double(), wanted_ND, rtol=0, atol=1e-3)


def test_a_patch_without_contrast_becomes_the_same_as_any_other_of_them() -> None:
    layer = PatchWhitening(1, 3, 1, 0.1)
    layer.fit([images(20, channels=1)])
    flat = layer(torch.cat([torch.full((1, 1, 3, 3), value) for value in (0.0, 2.0, -1.5)]))
    torch.testing.assert_close(flat[1:], flat[:1].expand(2, -1, -1, -1), rtol=0, atol=1e-4)


def test_fitting_does_not_depend_on_how_many_patches_are_unfolded_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, piecewise, x = PatchWhitening(2, 3, 1, 0.1), PatchWhitening(2, 3, 1, 0.1), images(20)
    assert FIT_PATCHES > 20 * 49
    at_once.fit([x])
    monkeypatch.setattr("fasthebb.nets.patch_whitening.FIT_PATCHES", 100)
    piecewise.fit([x])
    torch.testing.assert_close(piecewise.matrix, at_once.matrix, rtol=0, atol=1e-4)
    assert not torch.equal(at_once.matrix, torch.eye(18))


def test_units_give_how_much_nearer_their_centre_is_than_the_mean() -> None:
    torch.manual_seed(0)
    network = triangle(channels=3, size=12, classes=10, width=0.05).eval()
    x = torch.randn(2, 3, 12, 12)
    patches, _, _, norm = network.get_submodule("conv1").children()
    centres_KD = network.get_parameter("conv1.1.centres.weight").detach().flatten(1)
    torch.testing.assert_close(centres_KD.norm(dim=1), torch.ones(20))
    read: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    assert network(x).shape == (2, 10)
    p_ND = patches(x).movedim(1, -1).flatten(0, 2)
    z_NK = torch.cdist(p_ND, centres_KD)
    wanted = (z_NK.mean(1, keepdim=True) - z_NK).clamp_min(0)
    torch.testing.assert_close(read[0].movedim(1, -1).flatten(0, 2), wanted, rtol=0, atol=1e-4)


def test_a_patch_at_a_centre_has_finite_gradients() -> None:
    layer = NegativeDistance(4, 3)
    x = layer.centres.weight[0].detach().reshape(1, 4, 1, 1)
    layer(x).sum().backward()
    assert layer.centres.weight.grad is not None
    assert layer.centres.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 5}, "images of 5 x 5 are too small for patches of 6 x 6"),
        ({"kernel": 1}, "kernel must be above 1, not 1"),
        ({"stride": 0}, "stride must be above 0, not 0"),
        ({"smoothing": 0}, "smoothing must be above 0, not 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        triangle(**({"channels": 3, "size": 32, "classes": 10} | arguments))


def test_it_runs_on_the_meta_device_where_networks_are_tried() -> None:
    with torch.device("meta"):
        network: nn.Module = triangle(channels=3, size=32, classes=7)
        assert network(torch.empty(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["rule=kmeans", "rule=random", "rule=none"])
def test_its_whitening_is_fitted_once_and_handed_on(
    command: Command, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    """By the first stage, whatever it is."""
    fit = Mock(side_effect=PatchWhitening.fit)
    monkeypatch.setattr(PatchWhitening, "fit", lambda *given: fit(*given))
    ran = command("train", *SMALL, rule, "finetune.epochs=1", "label_fraction=0.1")
    assert ran.code == 0, ran.err
    assert fit.call_count == 1
    (tuned,) = ran.directories("finetune")
    weights = load_file(tuned / "model.safetensors")
    assert not torch.equal(weights["conv1.0.matrix"], torch.eye(108))
    assert weights["conv1.0.mean"].abs().max() > 0
    for earlier in ran.directories("pretrain"):
        assert torch.equal(load_file(earlier / "model.safetensors")["conv1.0.matrix"], weights["conv1.0.matrix"])


@pytest.mark.slow
def test_patches_of_whitened_images_are_whitened(command: Command) -> None:
    """The patches' whitening is fitted on the images as it gets them, so that its output is white."""
    size = ("dataset.size=8", "dataset.train_samples=600")
    ran = command("pretrain", *SMALL, *size, "rule.whitening=0.1", "model.options.smoothing=1e-4")
    assert ran.code == 0, ran.err
    network = load_model(ran.directories("pretrain")[0])
    dataset = load_dataset(loaded(*SMALL, "dataset=digits", *size).dataset, 0)
    pixels = dataset.source.read(dataset.train).float() / 255
    channels = pixels.movedim(1, -1).flatten(0, 2)
    images = (pixels - channels.mean(0).reshape(-1, 1, 1)) / channels.std(0).reshape(-1, 1, 1)
    white_ND = network.get_submodule("conv1.0")(network.get_submodule("whitening")(images)).movedim(1, -1).flatten(0, 2)
    variances = torch.linalg.eigvalsh(torch.cov(white_ND.T))
    assert variances[-30:].min() > 0.9  # the rest are directions that grey images do not have
    assert variances.max() < 1.1


@pytest.mark.slow
def test_kmeans_learns_and_a_closed_form_reads_its_units(command: Command) -> None:
    closed = ("finetune=closed_form", "finetune.components=60", "finetune.views=2", "label_fraction=0.1")
    ran = command("train", *SMALL, *closed, "dataset=digits", "gpu=cpu", small=False)
    assert ran.code == 0, ran.err
    assert ran.results("evaluate")["top1"] > 0.8
    pretrained = load_file(ran.directories("pretrain")[0] / "model.safetensors")
    lengths = pretrained["conv1.1.centres.weight"].flatten(1).norm(dim=1)
    assert (lengths - 1).abs().min() > 0.1, "centres keep their lengths"
    network = load_model(ran.directories("finetune")[0])
    with torch.no_grad():
        features = network.get_submodule("features")(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, 16 * 16)
    assert features.min() >= 0, "read before batch norm"
