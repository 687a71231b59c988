"""The networks of the papers: shapes, order of modules, no biases, and batch norm that keeps relative variances."""

import pytest
import torch
from torch import Tensor, nn

from fasthebb.nets.build import NETWORKS
from fasthebb.nets.networks import RelativeBatchNorm1d, RelativeBatchNorm2d, conv6, conv10, features


def shapes(network: nn.Sequential, size: int) -> dict[str, tuple[int, ...]]:
    """Output shape of each layer for two images, without the batch, and without computing anything."""
    network.eval()
    found = {}
    x = torch.empty(2, 3, size, size, device="meta")
    for name, module in network.named_children():
        x = module(x)
        found[name] = tuple(x.shape[1:])
    return found


def test_shapes_of_conv6() -> None:
    with torch.device("meta"):
        network = conv6(channels=3, size=32, classes=10)
    assert shapes(network, 32) == {
        "conv1": (96, 14, 14),
        "conv2": (128, 12, 12),
        "conv3": (192, 5, 5),
        "conv4": (256, 3, 3),
        "fc5": (4096,),
        "classifier": (10,),
    }
    weight = network.get_parameter("fc5.1.weight")
    assert weight.shape == (4096, 2304)


def test_shapes_of_conv10() -> None:
    with torch.device("meta"):
        network = conv10(channels=3, size=210, classes=1000)
    assert shapes(network, 210) == {
        "conv1": (96, 68, 68),
        "conv2": (128, 66, 66),
        "conv3": (192, 32, 32),
        "conv4": (192, 30, 30),
        "conv5": (256, 14, 14),
        "conv6": (256, 12, 12),
        "conv7": (384, 5, 5),
        "conv8": (512, 3, 3),
        "fc9": (4096,),
        "classifier": (1000,),
    }


@pytest.mark.parametrize(("name", "kernels"), [("conv6", [5, 3, 3, 3]), ("conv10", [7, 3, 3, 3, 3, 3, 3, 3])])
def test_layers_are_plain_and_without_biases(name: str, kernels: list[int]) -> None:
    with torch.device("meta"):
        network = NETWORKS[name](channels=3, size=210, classes=10)
    learnt = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert [path for path, module in learnt if module.bias is not None] == ["classifier.1"]
    convolutions = [module for _, module in learnt if isinstance(module, nn.Conv2d)]
    assert [module.kernel_size for module in convolutions] == [(kernel, kernel) for kernel in kernels]
    assert {module.stride + tuple(module.padding) for module in convolutions} == {(1, 1, 0, 0)}


def test_order_within_a_layer() -> None:
    """conv -> ReLU -> pool -> batch norm, and flatten -> fc -> ReLU -> batch norm."""
    network = conv6(channels=1, size=32, classes=2, width=0.02, norm="batch")
    kinds = {name: [type(part) for part in module.children()] for name, module in network.named_children()}
    assert kinds == {
        "conv1": [nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.BatchNorm2d],
        "conv2": [nn.Conv2d, nn.ReLU, nn.BatchNorm2d],
        "conv3": [nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.BatchNorm2d],
        "conv4": [nn.Conv2d, nn.ReLU, nn.BatchNorm2d],
        "fc5": [nn.Flatten, nn.Linear, nn.ReLU, nn.BatchNorm1d],
        "classifier": [nn.Dropout, nn.Linear],
    }


@pytest.mark.parametrize(
    ("name", "size", "relative"), [("conv6", 32, ["conv3", "conv4", "fc5"]), ("conv10", 210, ["conv7", "conv8", "fc9"])]
)
def test_the_deepest_three_norms_are_relative(name: str, size: int, relative: list[str]) -> None:
    for norm, wanted in (("relative", relative), ("batch", [])):
        with torch.device("meta"):
            network = NETWORKS[name](channels=3, size=size, classes=10, norm=norm)
        kinds = (RelativeBatchNorm1d, RelativeBatchNorm2d)
        found = [
            layer for layer, module in network.named_children() if any(isinstance(m, kinds) for m in module.children())
        ]
        assert found == wanted


@pytest.mark.parametrize(
    ("width", "units"), [(0.5, [48, 64, 96, 128, 2048]), (2.0, [192, 256, 384, 512, 8192]), (1e-4, [1, 1, 1, 1, 1])]
)
def test_width_multiplies_the_hidden_layers(width: float, units: list[int]) -> None:
    with torch.device("meta"):
        network = conv6(channels=1, size=28, classes=7, width=width)
    weights = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert [len(weight) for weight in weights] == [*units, 7]
    assert weights[0].shape[1] == 1


@pytest.mark.parametrize(("name", "smallest"), [("conv6", 24), ("conv10", 162)])
def test_too_small_images(name: str, smallest: int) -> None:
    with torch.device("meta"):
        network = NETWORKS[name](channels=3, size=smallest, classes=10, width=0.1)
        assert shapes(network, smallest)["classifier"] == (10,)
        last = list(dict(network.named_children()))[-3]
        message = f"images of {smallest - 1} x {smallest - 1} are too small .* {last} is left"
        with pytest.raises(ValueError, match=message):
            NETWORKS[name](channels=3, size=smallest - 1, classes=10, width=0.1)
        with pytest.raises(ValueError, match="conv1 is left"):
            NETWORKS[name](channels=3, size=4, classes=10)


@pytest.mark.parametrize("shape", [(16, 3), (8, 3, 4, 5)])
def test_relative_batch_norm(shape: tuple[int, ...]) -> None:
    """Plain batch norm by formula, times sqrt(running_var / its mean), in training and after."""
    torch.manual_seed(0)
    spread = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64).reshape(3, *[1] * (len(shape) - 2))
    x = torch.randn(shape, dtype=torch.float64) * spread + spread
    norm = (RelativeBatchNorm1d(3) if len(shape) == 2 else RelativeBatchNorm2d(3)).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.3, -0.1, 0.0]))

    def expected(means: list[Tensor], variances: list[Tensor], running: list[Tensor]) -> Tensor:
        channels = []
        for k in range(3):
            normalised = (x[:, k] - means[k]) / (variances[k] + norm.eps).sqrt() * norm.weight[k] + norm.bias[k]
            channels.append(normalised * (running[k] / (sum(running, torch.zeros(())) / 3)).sqrt())
        return torch.stack(channels, dim=1)

    of_batch = [x[:, k] for k in range(3)]
    running_mean = [0.1 * values.mean() for values in of_batch]
    running_var = [0.9 + 0.1 * values.var(correction=1) for values in of_batch]
    in_training = expected([v.mean() for v in of_batch], [v.var(correction=0) for v in of_batch], running_var)
    torch.testing.assert_close(norm(x), in_training)
    norm.eval()
    torch.testing.assert_close(norm(x), expected(running_mean, running_var, running_var))


def test_features_by_layer() -> None:
    """Each layer's output, batch norm included, is what the next one is called with."""
    torch.manual_seed(0)
    network = conv6(channels=1, size=24, classes=3, width=0.05).eval()
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)):
        assert norm.running_mean is not None
        norm.running_mean.fill_(0.5)
    seen: dict[str, Tensor] = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output}))
    images = torch.randn(2, 1, 24, 24)
    network(images)
    wanted = dict(seen)
    assert list(wanted) == ["conv1", "conv2", "conv3", "conv4", "fc5", "classifier"]
    for name, output in wanted.items():
        assert torch.equal(features(network, images, name), output)
    assert float(wanted["conv1"].detach().min()) < 0, "ReLU alone would have nothing below 0"


def test_features_stop_at_their_layer() -> None:
    network = conv6(channels=1, size=24, classes=3, width=0.05).eval()
    del network.fc5, network.classifier
    network.append(nn.Linear(1, 1))  # fits nothing
    assert features(network, torch.zeros(1, 1, 24, 24), "conv4").shape == (1, 13, 1, 1)


def test_features_of_an_unknown_layer() -> None:
    network = conv6(channels=1, size=24, classes=3, width=0.05).eval()
    with pytest.raises(ValueError, match=r"no layer 'conv7'; the network has: conv1, conv2, .*, fc5, classifier"):
        features(network, torch.zeros(1, 1, 24, 24), "conv7")
