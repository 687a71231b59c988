"""Probes: heads on features with a known answer, layers by name, and the command."""

import copy
import os
import signal
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fasthebb.nets.build import build_network
from fasthebb.nets.networks import conv6
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.run import loop
from fasthebb_cli.settings.load import with_defaults
from fasthebb_cli.settings.probe import ProbeConfig
from fasthebb_cli.stages.features import Features, probed_layers
from fasthebb_cli.stages.heads import HEADS, Samples
from fasthebb_cli.stages.task import Batch
from tests.conftest import Ran

CPU = torch.device("cpu")


def settings(**changes: object) -> ProbeConfig:
    usual: dict[str, object] = {
        "pool": 4, "batch_size": 64, "epochs": 20, "lr": 0.01, "schedule": "cosine", "weight_decay": 0.0,
        "neighbours": 5, "components": 100, "queries": 50,
    }  # fmt: skip
    return with_defaults(ProbeConfig, **(usual | changes))


def clusters(count: int = 300, classes: int = 3, *, spread: float = 0.3) -> Samples:
    """Clusters around the corners of a cube; the second half of the samples is for testing."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    features = 1 + torch.eye(classes, 8)[labels] * 2 + spread * torch.randn(count, 8, generator=generator)
    half = count // 2
    return Samples(features[:half], labels[:half], features[half:], labels[half:], classes)


@pytest.mark.parametrize("name", HEADS)
def test_heads_tell_clusters_apart_and_guess_where_there_is_nothing_to_know(name: str) -> None:
    torch.manual_seed(0)
    samples = clusters()
    score = HEADS[name](samples, settings(), CPU)
    assert all(value > 0.95 for value in score.values()), score
    noise = Samples(torch.randn(150, 8), samples.labels_N, torch.randn(150, 8), samples.labels_M, 3)
    score = HEADS[name](noise, settings(), CPU)
    assert next(iter(score.values())) < 0.5, score


def test_a_hidden_layer_learns_what_a_line_cannot() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 2)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    samples = Samples(x[:300], labels[:300], x[300:], labels[300:], 2)
    assert HEADS["linear"](samples, settings(), CPU)["top1"] < 0.7
    assert HEADS["linear"](samples, settings(hidden=32), CPU)["top1"] > 0.9


def test_scores_that_are_not_finite_are_no_result() -> None:
    x_NF, labels = torch.randn(40, 3), torch.arange(40) % 2
    x_NF[7, 1] = float("inf")
    samples = Samples(x_NF, labels, x_NF, labels, 2)
    with pytest.raises(RunError, match=r"diverged; lower probe\.lr"):
        HEADS["linear"](samples, settings(), CPU)


def test_the_hebbian_classifier_compares_with_class_means() -> None:
    samples = clusters(spread=1.0)
    means = torch.stack([samples.train_NF[samples.labels_N == label].mean(0) for label in range(3)])
    scores = samples.test_MF @ (means / means.norm(dim=1, keepdim=True)).T
    wanted = (scores.argmax(1) == samples.labels_M).float().mean()
    assert HEADS["hebbian"](samples, settings(), CPU)["hebbian"] == pytest.approx(float(wanted))


def test_mean_average_precision_by_hand() -> None:
    """Images of the query's class are ranked first and third of three: (1/1 + 2/3) / 2."""
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.5], [0.0, 1.0]])
    samples = Samples(gallery, torch.tensor([0, 1, 0]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]), 2)
    assert HEADS["retrieval"](samples, settings(), CPU)["retrieval"] == pytest.approx((1 + 2 / 3) / 2)


def test_features_are_what_the_layers_hand_on_and_nothing_moves() -> None:
    torch.manual_seed(0)
    network = conv6(channels=3, size=32, classes=10, width=0.05).eval()
    before = copy.deepcopy(network.state_dict())
    images = torch.randn(3, 3, 32, 32)
    kept = Features(probed_layers(network, None), pool=0)
    kept.collect(network, Batch(images, torch.tensor([0, 1, 2]), total=3))
    assert list(kept.outputs) == ["conv1", "conv2", "conv3", "conv4", "fc5"]
    with torch.no_grad():
        torch.testing.assert_close(kept.outputs["conv2"][0], network[:2](images).flatten(1))
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_follows_in_place_changes_no_feature() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(inplace=True))
    kept = Features({"0": network[0]}, pool=4)
    images = torch.randn(7, 3)
    kept.collect(network, Batch(images, torch.zeros(7, dtype=torch.int64), total=7))
    assert torch.equal(kept.outputs["0"][0], network[0](images))


def test_layers_are_chosen_by_pattern() -> None:
    network = conv6(channels=3, size=32, classes=10, width=0.02)
    assert list(probed_layers(network, ["conv[12]", "fc5.1"])) == ["conv1", "conv2", "fc5.1"]
    resnet = build_network("torchvision:resnet18", {}, channels=3, size=32, classes=2)
    assert list(probed_layers(resnet, None))[4:8] == [f"features.layer{number}" for number in (1, 2, 3, 4)]
    with pytest.raises(InputError, match="nothing is called 'conv9'; the network has: conv1"):
        probed_layers(network, ["conv9"])


def test_features_that_do_not_fit_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 1 << 10)
    network = nn.Sequential(nn.Conv2d(1, 4, 1))
    with pytest.raises(InputError, match=r"features take .* choose fewer probe\.layers"):
        Features(probed_layers(network, None), pool=0).check(network, torch.zeros(1, 1, 8, 8), 10_000, [])


def test_layers_that_give_no_tensor_are_left_out_unless_they_are_named() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.called, self.unused, self.recurrent = nn.Linear(8, 4), nn.Linear(8, 4), nn.LSTM(4, 2)

        def forward(self, images: Tensor) -> Tensor:
            output: Tensor = self.recurrent(self.called(images.flatten(1)))[0]
            return output

    network, image = Partly(), torch.zeros(1, 1, 2, 4)
    features = Features(probed_layers(network, None), pool=0)
    features.check(network, image, 10, [])
    assert list(features.layers) == ["called"]
    for name in ("unused", "recurrent"):
        features = Features(probed_layers(network, [name, "called"]), pool=0)
        with pytest.raises(InputError, match=f"takes 0 tensors from {name}, not one; name another"):
            features.check(network, image, 10, [name, "called"])
    with pytest.raises(InputError, match="takes 0 tensors"):
        Features(probed_layers(network, ["u*"]), pool=0).check(network, image, 10, ["u*"])


@pytest.mark.slow
def test_every_layer_is_probed_on_the_labelled_subset(command: Callable[..., Ran]) -> None:
    words = ("label_fraction=0.2", "model.width=0.1", "stages=[pretrain,probe]", "probe.methods=[linear,hebbian]")
    ran = command("train", *words)
    assert ran.code == 0, ran.err
    results = ran.results("probe")
    assert results["labels_train"] == 200
    assert list(results["layers"]) == ["conv1", "conv2", "conv3", "conv4", "fc5"]
    for scores in results["layers"].values():
        assert 0.5 < scores["top1"] <= scores["top5"] <= 1
        assert 0.3 < scores["hebbian"] <= 1
    assert "conv3" in ran.out
    again = command("train", *words)
    assert again.results("probe") == results
    random = command("probe", "rule=none", *words[:2])
    assert random.code == 0, random.err


@pytest.mark.slow
def test_features_of_all_layers_come_from_one_pass(
    command: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each labelled and each test image runs through the network once, however many layers are probed."""
    assert command("pretrain").code == 0
    seen: list[int] = []
    forward = nn.Conv2d.forward

    def counted(layer: nn.Conv2d, x: Tensor) -> Tensor:
        seen.append(len(x))
        return forward(layer, x)

    monkeypatch.setattr(nn.Conv2d, "forward", counted)
    ran = command("probe", "label_fraction=0.2", "probe.methods=[linear,hebbian,knn]", "probe.batch_size=50")
    assert ran.code == 0, ran.err
    results = ran.results("probe")
    assert len(results["layers"]) == 5
    images = results["labels_train"] + results["samples"]
    assert sum(count for count in seen if count > 1) == 4 * images  # convolutions; one image alone checks the memory


@pytest.mark.parametrize("moment", ["within the pass", "while heads learn"])
@pytest.mark.slow
def test_a_stopped_probe_says_that_it_starts_over(
    command: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def stop(*_: object) -> dict[str, float]:
        signal.raise_signal(signal.SIGUSR1)
        assert moment == "within the pass", "heads go on to their end"
        return {"top1": 0.0, "top5": 0.0}

    with monkeypatch.context() as patched:
        if moment == "within the pass":
            patched.setattr(Features, "collect", lambda kept, network, batch: stop() and None)
            patched.setattr(Features, "check", lambda *_: None)
        else:
            patched.setitem(HEADS, "linear", stop)
        ran = command("train", "stages=[pretrain,probe]", "label_fraction=0.1")
    assert ran.code == 130
    assert "at the start of probe" in ran.err
    assert not list(ran.directories("probe")[0].glob("checkpoint.pt"))
    ran = command("train", "stages=[pretrain,probe]", "label_fraction=0.1")
    assert ran.code == 0, ran.err
    assert ran.results("probe")["layers"]["conv1"]["top1"] > 0


@pytest.mark.slow
def test_a_probe_that_is_done_when_it_is_stopped_keeps_its_results(
    command: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("rule=none", "stages=[probe,finetune]", "label_fraction=0.1", "probe.layers=[conv1]")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "check_finite", lambda network: os.kill(os.getpid(), signal.SIGTERM))  # after the scores
        ran = command("train", *words)
    assert ran.code == 130
    assert "stopped and saved at the end of probe" in ran.err
    assert not ran.directories("finetune")
    results = ran.results("probe")
    ran = command("train", *words)
    assert ran.code == 0, ran.err
    assert ran.results("probe") == results


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["probe.methods=[lineal]"], "probe.methods must be one of linear"),
        (["probe.layers=[]"], "probe.layers is empty"),
        (["probe.layers=[conv7]"], "nothing is called 'conv7'"),
        (["probe.split=train"], "probe.split must be one of"),
        ([], "pretrain is not finished"),
    ],
)
def test_bad_input(command: Callable[..., Ran], words: list[str], expected: str) -> None:
    first = ["stages=[pretrain,probe]"] if words else []
    ran = command("probe", *first, *words)
    assert ran.code == 2
    assert expected in ran.err
