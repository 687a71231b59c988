"""Which layers are read, in every kind of network, and what is computed for it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasthebb.nets.build import build_network
from fasthebb.nets.networks import conv6
from fasthebb.nets.networks import features as output_of
from fasthebb.readout.features import Features, chosen_layers

IMAGES = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))


class Branching(nn.Module):
    """No sequence: computed in another order than that in which its modules were made."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Conv2d(4, 5, 3)
        self.early = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True))
        self.pair = Pair()
        self.unused = nn.Linear(2, 2)
        self.classifier: nn.Module = Fails()

    def forward(self, images: Tensor) -> Tensor:
        x = self.early(images)
        self.pair(x)
        return self.classifier(self.late(x))  # type: ignore[no-any-return]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("it is computed")


def test_patterns_choose_the_outermost_layers_but_no_classifier() -> None:
    network = build_network("conv6", {"width": 0.05}, channels=1, size=32, classes=10, whitening=True)
    assert chosen_layers(network, ["conv*"]) == ["conv1", "conv2", "conv3", "conv4"]
    assert chosen_layers(network, ["*"]) == ["conv1", "conv2", "conv3", "conv4", "fc5"]
    assert chosen_layers(network, ["fc5", "conv2.?", "conv[12]"]) == [
        "conv1", "conv2", "conv2.0", "conv2.1", "conv2.2", "fc5",
    ]  # fmt: skip
    assert chosen_layers(network, ["whitening"]) == ["whitening"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("conv9*", "no layer 'conv9*'; the network has: conv1, conv2, conv3, conv4, fc5"),
        ("conv2.9", "conv4, fc5, conv2.0, conv2.1, conv2.2"),
        ("classifier", "no layer 'classifier'; the network has: conv1"),
        ("classifier.1", "no layer 'classifier.1'"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(pattern: str, expected: str) -> None:
    with pytest.raises(ValueError, match=r"no layer") as error:
        Features(conv6(channels=1, size=32, classes=10, width=0.05), [pattern], 4, root=True)
    assert expected in str(error.value)


def test_layers_in_any_order_are_read_in_that_of_the_network() -> None:
    network = conv6(channels=1, size=32, classes=10, width=0.05).eval()
    one = Features(network, ["conv2", "conv1.0", "fc5"], 2, root=False)(IMAGES)
    other = Features(network, ["fc5", "conv1.0", "conv2"], 2, root=False)(IMAGES)
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    first = F.adaptive_avg_pool2d(network.get_submodule("conv1.0")(IMAGES), 2).flatten(1)
    conv2 = nn.Sequential(*list(network.get_submodule("conv2").children())[:-1])
    before_norm = conv2(output_of(network, IMAGES, "conv1"))
    expected = torch.cat([first, F.adaptive_avg_pool2d(before_norm, 2).flatten(1)], dim=1)
    torch.testing.assert_close(one[:, : expected.shape[1]], expected)


def test_the_names_of_weights_are_those_of_files_written_before() -> None:
    network = conv6(channels=1, size=32, classes=10, width=0.05)
    names = Features(network, ["conv2", "conv1"], 4, root=True).state_dict().keys()
    assert names == {name for name in network.state_dict() if name.startswith(("conv1.", "conv2."))}


@pytest.mark.parametrize("layer", ["a", "a.0"])
def test_nothing_is_computed_after_the_last_layer(layer: str) -> None:
    network = nn.Sequential()
    network.add_module("a", nn.Sequential(nn.Conv2d(1, 2, 3), nn.Identity() if layer == "a" else Fails()))
    network.add_module("b", Fails())
    features = Features(network, [layer], 4, root=False)
    assert features(IMAGES).shape == (3, 2 * 16)
    assert "b" not in dict(features.named_children())


def test_a_network_that_is_no_sequence_is_read_in_the_order_of_its_computing() -> None:
    network = Branching()
    found = Features(network, ["late", "early"], 1, root=False)(IMAGES)
    early = network.early(IMAGES)
    expected = torch.cat([early.mean((2, 3)), network.late(early).mean((2, 3))], dim=1)
    torch.testing.assert_close(found, expected)
    raw = Features(network, ["early.0"], 1, root=False)(IMAGES)
    torch.testing.assert_close(raw, network.early[0](IMAGES).mean((2, 3)), msg="before ReLU changes it in place")


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("pair", "layer pair gives no row or map for each image, but an output of type tuple"),
        ("unused", "the network never calls unused"),
    ],
)
def test_a_layer_without_features_is_refused(layer: str, expected: str) -> None:
    network = Branching()
    network.classifier = nn.Identity()
    with pytest.raises(ValueError, match=expected):
        Features(network, [layer], 1, root=False).check(1, 32)


def test_a_module_that_stands_twice_is_called_twice() -> None:
    shared = nn.AvgPool2d(2)
    network = nn.Sequential()
    for name, module in {"a": shared, "b": shared, "pool": nn.Flatten()}.items():
        network.add_module(name, module)
    assert Features(network, ["pool"], 4, root=False)(IMAGES).shape == (3, 64)


def test_layers_of_a_torchvision_network() -> None:
    arguments = {"channels": 3, "size": 32, "classes": 10}
    closed = {"pool": 2, "root": True, "mirror": False}
    network = build_network("torchvision:shufflenet_v2_x0_5", {}, **arguments)  # type: ignore[arg-type]
    read = Features(network, ["features.stage2", "features.conv1"], 2, root=True).eval()
    assert read(torch.rand(2, 3, 32, 32)).shape == (2, (24 + 48) * 4)
    with pytest.raises(ValueError, match=r"^finetune.layers: .* name some layers of: features, features.conv1"):
        build_network("torchvision:shufflenet_v2_x0_5", {}, **arguments, closed_form=closed | {"layers": None})  # type: ignore[arg-type]
