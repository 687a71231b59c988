"""Cutting a network after a layer: the kept layers are shared, and the classifier reads a small grid of the output."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from fasthebb.nets.build import build_network
from fasthebb.nets.networks import conv6, features
from fasthebb.nets.readout import add_hidden_layer, cut_after, output_layer


class Undecided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layer(x)
        return scores if x.sum() > 0 else -scores


@pytest.mark.parametrize(("layer", "inputs"), [("conv1", 4 * 16), ("conv2", 5 * 16), ("conv4", 10 * 9), ("fc5", 164)])
def test_the_classifier_reads_the_layer_averaged_to_a_grid(layer: str, inputs: int) -> None:
    network = conv6(channels=3, size=32, classes=10, width=0.04).eval()
    cut = cut_after(network, layer, channels=3, size=32, classes=7).eval()
    linear = cut.get_submodule("classifier")[-1]  # type: ignore[index]
    assert linear.weight.shape == (7, inputs)
    images = torch.randn(2, 3, 32, 32)
    read = features(network, images, layer)
    if read.dim() == 4:
        size = min(4, read.shape[2])
        rows = [range(i * read.shape[2] // size, -(-(i + 1) * read.shape[2] // size)) for i in range(size)]
        cells = [read[:, :, list(a)][:, :, :, list(b)].mean((2, 3)) for a in rows for b in rows]
        read = torch.stack(cells, 2)
    torch.testing.assert_close(cut(images), linear(read.flatten(1)))
    assert cut.get_submodule("conv1") is network.get_submodule("conv1")


@pytest.mark.parametrize(
    ("name", "layer", "size", "inputs"),
    [
        ("torchvision:vgg11", "features.features.3", 32, 128 * 16),
        ("torchvision:resnet18", "features.layer2.0.conv1", 32, 128 * 16),
        ("torchvision:vit_b_16", "features.encoder.layers.encoder_layer_0", 224, 197 * 768),
        ("conv6", "conv3.0", 32, 192 * 16),
    ],
)
@pytest.mark.slow
def test_the_classifier_may_read_what_lies_inside(name: str, layer: str, size: int, inputs: int) -> None:
    whole = build_network(name, {}, channels=3, size=size, classes=10).eval()
    cut = cut_after(whole, layer, channels=3, size=size, classes=7).eval()
    seen: list[torch.Tensor] = []
    images = torch.randn(2, 3, size, size)
    hook = whole.get_submodule(layer).register_forward_hook(lambda module, x, output: seen.append(output.clone()))
    whole(images)
    linear = cut.get_submodule("classifier")[-1]  # type: ignore[index]
    pool = nn.AdaptiveAvgPool2d(4) if seen[0].dim() == 4 else nn.Identity()
    hook.remove()
    torch.testing.assert_close(cut(images), linear(pool(seen[0]).flatten(1)))
    assert linear.in_features == inputs
    count = sum(value.numel() for value in cut.parameters()) - sum(value.numel() for value in linear.parameters())
    assert count < sum(value.numel() for value in whole.parameters())
    assert {id(value) for key, value in cut.named_parameters() if "classifier" not in key} < set(
        map(id, whole.parameters())
    )


def test_cutting_leaves_mode_and_batch_norm_alone() -> None:
    network = conv6(channels=1, size=32, classes=3, width=0.04)
    cut_after(network, "conv2", channels=1, size=32, classes=3)
    assert all(module.training for module in network.modules())
    assert network.get_buffer("conv1.3.num_batches_tracked") == 0


def test_a_module_that_stands_twice_stays_in_both_places() -> None:
    shared = nn.ReLU()
    layers = [("one", nn.Conv2d(1, 2, 3)), ("act1", shared), ("two", nn.Conv2d(2, 3, 3)), ("act2", shared)]
    head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 4))
    network = nn.Sequential(OrderedDict([*layers, ("classifier", head)])).eval()
    images = torch.randn(2, 1, 8, 8)
    cut = cut_after(network, "act2", channels=1, size=8, classes=4)
    assert list(cut._modules) == ["one", "act1", "two", "act2", "classifier"]
    assert float(features(cut, images, "act2").detach().min()) == 0
    torch.testing.assert_close(features(network, images, "act2"), network[:4](images))


def test_what_can_not_be_cut() -> None:
    network = conv6(channels=3, size=32, classes=10, width=0.04)
    with pytest.raises(ValueError, match="no layer 'conv9'; the network has: conv1, conv2, conv3, conv4, fc5"):
        cut_after(network, "conv9", channels=3, size=32, classes=10)
    with pytest.raises(ValueError, match=r"no layer 'conv1.9'; the network has: .*, and in conv1: conv1.0, conv1.1"):
        cut_after(network, "conv1.9", channels=3, size=32, classes=10)
    undecided = nn.Sequential(OrderedDict([("features", Undecided()), ("classifier", nn.Linear(5, 2))]))
    with pytest.raises(ValueError, match="a Undecided can't be cut inside"):
        cut_after(undecided, "features.layer", channels=3, size=32, classes=10)
    with pytest.raises(ValueError, match="ends in a child called classifier"):
        cut_after(nn.Linear(3, 3), "conv1", channels=3, size=32, classes=10)


def test_a_hidden_layer_takes_the_place_of_the_last_linear_one() -> None:
    network = conv6(channels=3, size=32, classes=10, width=0.04, dropout=0.3)
    inputs = output_layer(network)[1].in_features
    add_hidden_layer(network, 7)
    parts: list[Any] = list(network.get_submodule("classifier.1").children())
    first, _, dropout, last = parts
    assert (first.weight.shape, last.weight.shape, dropout.p) == ((7, inputs), (10, 7), 0.3)
    assert output_layer(network)[1] is last
    alone = nn.Sequential(OrderedDict([("features", nn.Linear(4, 5)), ("classifier", nn.Linear(5, 2, bias=False))]))
    add_hidden_layer(alone, 3)
    assert alone(torch.zeros(1, 4)).shape == (1, 2)
    assert output_layer(alone)[1].bias is None
    with pytest.raises(ValueError, match="no linear layer in a child called classifier"):
        add_hidden_layer(nn.Sequential(nn.Linear(3, 3)), 3)
