"""The SoftHebb network: its sizes, its activation, and that the command trains it layer by layer."""

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from fasthebb.nets.networks import features
from fasthebb.nets.softhebb import GAIN, Triangle, softhebb
from fasthebb_cli.stages.schedules import softhebb as schedule
from tests.conftest import Ran


def test_sizes_and_initial_lengths() -> None:
    torch.manual_seed(0)
    network = softhebb(channels=3, size=32, classes=10, width=0.25).eval()
    images = torch.randn(2, 3, 32, 32)
    shapes = [tuple(features(network, images, f"conv{k}").shape[1:]) for k in (1, 2, 3)]
    assert shapes == [(24, 16, 16), (96, 8, 8), (384, 4, 4)]
    assert network(images).shape == (2, 10)
    norms = network.get_parameter("conv2.1.weight").detach().flatten(1).norm(dim=1)
    assert norms.mean() == pytest.approx(GAIN, rel=0.05)


def test_triangle_keeps_what_is_above_the_mean_of_the_units() -> None:
    u = torch.tensor([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1)
    assert Triangle()(u).flatten().tolist() == [0, 0, 3]


@pytest.mark.parametrize(("layer", "power"), [("conv1", 0.7), ("conv2", 1.4)])
def test_a_layer_gives_the_pooled_powers_of_the_paper(layer: str, power: float) -> None:
    torch.manual_seed(0)
    block = softhebb(channels=3, size=32, classes=10, width=0.25).eval().get_submodule(layer)
    assert isinstance(block, nn.Sequential)
    x = block[:2](torch.randn(4, 3 if layer == "conv1" else 24, 32, 32))
    assert torch.equal(block[2:](x), F.max_pool2d((x - x.mean(1, keepdim=True)).relu() ** power, 4, 2, 1))


def test_the_rate_is_halved_seven_times() -> None:
    rates = [schedule(0, epoch, 50) for epoch in range(50)]
    assert [epoch for epoch in range(1, 50) if rates[epoch] < rates[epoch - 1]] == [10, 18, 25, 30, 35, 40, 45]
    assert rates[-1] == 0.5**7


@pytest.mark.slow
def test_softhebb_moves_its_filters_towards_length_1_and_a_classifier_reads_them(command: Callable[..., Ran]) -> None:
    """Lengths start at 25 and fall fastest in the first layer, which sees the most patches."""
    words = ("experiment=softhebb_cifar10", "dataset.train_samples=1000", "model.width=0.1", "probe.epochs=10")
    ran = command("train", *words, "pretrain.epochs=1", "rule=softhebb")
    assert ran.code == 0, ran.err
    (directory,) = ran.directories("pretrain")
    weights = load_file(directory / "model.safetensors")
    lengths = [float(weights[f"conv{k}.1.weight"].flatten(1).norm(dim=1).mean()) for k in (1, 2, 3)]
    assert lengths[0] < 5
    assert max(lengths[1:]) < 24
    assert ran.results("probe")["layers"]["conv3"]["top1"] > 0.9
