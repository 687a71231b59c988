"""Pre-training through the command: every rule in conf/, and the settings of the learner."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fasthebb.nets.whitening import Whitening
from fasthebb.settings import RULES
from fasthebb_cli.compute.device import set_up
from fasthebb_cli.data.dataset import Dataset
from fasthebb_cli.data.source import InMemory
from fasthebb_cli.settings.conf import conf_directory
from fasthebb_cli.stages import Context
from fasthebb_cli.stages.first_step import BATCH_SIZE, fit_whitening
from fasthebb_cli.stages.rule import NO_RULES
from tests.conftest import Ran, loaded

Command = Callable[..., Ran]
CHOICES = sorted(path.stem for path in (conf_directory() / "rule").glob("*.yaml"))


def epochs(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_every_rule_is_a_choice() -> None:
    assert set(CHOICES) == {*RULES, *NO_RULES, "own"}


@pytest.mark.slow
@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_learns_in_every_layer(command: Command, rule: str) -> None:
    ran = command("pretrain", f"rule={rule}", "rule.whitening=null", "pretrain.epochs=1")  # fitting it takes a second
    assert ran.code == 0, ran.err
    (epoch,) = epochs(ran.directories("pretrain")[0])
    for name, layer in epoch["layers"].items():
        assert 1e-7 < layer["update"] < 10, (name, layer)


@pytest.mark.slow
def test_an_autoencoder_learns_to_paint_and_leaves_only_the_encoder(command: Command) -> None:
    ran = command("train", "rule=vae", "pretrain.epochs=4", "label_fraction=0.2")
    assert ran.code == 0, ran.err
    first, *_, last = epochs(ran.directories("pretrain")[0])
    assert last["squared_error"] < 0.9 * first["squared_error"]
    names = load_file(ran.directories("pretrain")[0] / "model.safetensors").keys()
    assert names == load_file(ran.directories("finetune")[0] / "model.safetensors").keys()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pretrain.teacher=true"], "leave out pretrain.teacher"),
        (["+rule.options.depth=3"], "rule=vae accepts: latents"),
        (["rule.options.latents=0"], "latents must be at least 1"),
        (["model=softhebb"], "has no mirror image"),
    ],
)
def test_bad_input_of_the_autoencoder(command: Command, words: list[str], expected: str) -> None:
    ran = command("pretrain", "rule=vae", *words)
    assert ran.code == 2
    assert expected in ran.err


@pytest.mark.slow
def test_layer_by_layer_gives_each_layer_its_epochs(command: Command) -> None:
    ran = command("pretrain", "pretrain.layer_by_layer=true", "pretrain.epochs=1")
    assert ran.code == 0, ran.err
    moved = [
        [name for name, layer in epoch["layers"].items() if layer["update"] > 0]
        for epoch in epochs(ran.directories("pretrain")[0])
    ]
    assert moved == [["conv1.0"], ["conv2.0"], ["conv3.0"], ["conv4.0"], ["fc5.1"]]


@pytest.mark.slow
def test_a_teacher_sees_the_labelled_subset_and_counts_it(command: Command) -> None:
    ran = command("pretrain", "pretrain.teacher=true", "label_fraction=0.2", "model.width=0.1")
    assert ran.code == 0, ran.err
    results = ran.results("pretrain")
    assert results["samples"] == results["labels_train"] == 200
    other = command("pretrain", "pretrain.teacher=true", "label_fraction=0.3", "model.width=0.1")
    assert len(other.directories("pretrain")) == 2


@pytest.mark.slow
def test_another_optimizer_learns_otherwise(command: Command) -> None:
    command("pretrain")
    ran = command("pretrain", "pretrain.optimizer=Adam", "pretrain.lr=0.001", "+pretrain.optimizer_options.eps=1e-4")
    assert ran.code == 0, ran.err
    first, second = (load_file(path / "model.safetensors")["conv1.0.weight"] for path in ran.directories("pretrain"))
    assert not first.equal(second)


@pytest.mark.parametrize(
    "words",
    [
        ["rule.response=dot"],
        ["rule.per_input=true"],
        ["rule.norm_power=0.5"],
        ["rule.normalise=true"],
        ["++rule.layer_options={conv1: {damping: 2.0}}"],
        ["pretrain.teacher=true", "pretrain.teacher_units={conv2: 10}"],
    ],
)
@pytest.mark.slow
def test_what_the_learner_can_be_asked_for_reaches_it(command: Command, words: list[str]) -> None:
    usual = ["pretrain.teacher=true"] if "pretrain.teacher=true" in words else []
    for asked in (usual, words):
        ran = command("pretrain", "model.width=0.2", "pretrain.epochs=1", "label_fraction=0.2", *asked)
        assert ran.code == 0, ran.err
    first, second = (load_file(path / "model.safetensors") for path in ran.directories("pretrain"))
    learnt = [name for name in first if name.endswith(".weight") and first[name].dim() > 1 and "classifier" not in name]
    assert any(not first[name].equal(second[name]) for name in learnt)


@pytest.mark.slow
def test_a_rule_of_ones_own(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rules.py").write_text(
        "from fasthebb.rules import Terms\n"
        "def contrast(y_NGK, *, power=1.0):\n"
        "    return Terms(gate=y_NGK.abs() ** power)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    ran = command("pretrain", "rule.name=my_rules:contrast", "rule.options={power: 2.0}", "rule.response=cosine")
    assert ran.code == 2  # groups are merged: the options of hpca are still there
    ran = command("pretrain", "rule=my_rules:contrast", "+rule.options.power=2.0", "pretrain.lr=1e-4")
    assert ran.code == 0, ran.err


@pytest.mark.slow
def test_layers_that_do_not_learn_are_said(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "class Idle(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        return self[1](x)\n"
        "def net(*, channels, size, classes):\n"
        "    depthwise = nn.Conv2d(channels, channels, 3, groups=channels)\n"
        "    idle = Idle(nn.Linear(2, 2), nn.Identity())\n"
        "    features = nn.Sequential(depthwise, nn.Conv2d(channels, 4, 3), nn.Flatten(), idle)\n"
        "    return nn.Sequential(nn.Sequential(features), nn.Linear(4 * (size - 4) ** 2, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ("model=my_nets:net", "dataset=digits", "pretrain.exclude=['1']", "pretrain.epochs=1", "gpu=cpu")
    ran = command("pretrain", "rule=swta", "rule.whitening=null", *words, small=False)
    assert ran.code == 0, ran.err
    assert "layer 0.0.0 does not learn: one unit a group" in ran.out
    assert "layer 0.0.3.0 learnt nothing: the network never called it" in ran.out


@pytest.mark.slow
def test_a_network_that_looks_at_values_is_tried_for_real(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_values.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Scaled(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x / (1 + x.abs().max().item()))\n"
        "def net(*, channels, size, classes, units=None):\n"
        "    units = units or [int(value.item()) for value in torch.linspace(4, 8, 2)]\n"
        "    convolution = nn.Conv2d(channels, units[1], 9)\n"
        "    return Scaled(convolution, nn.Flatten(), nn.Linear(units[1] * (size - 8) ** 2, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ("model=my_values:net", "dataset=digits", "pretrain.exclude=['2']", "pretrain.epochs=1", "gpu=cpu")
    ran = command("pretrain", *words, small=False)
    assert ran.code == 0, ran.err
    ran = command("pretrain", *words, "dataset.size=6", small=False)
    assert ran.code == 2
    assert "can't take images of 3 x 6 x 6" in ran.err


@pytest.mark.slow
def test_whitening_is_fitted_once_and_handed_on(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first stage fits it; the later ones have the same."""
    fit = Mock(side_effect=Whitening.fit)
    monkeypatch.setattr(Whitening, "fit", lambda layer, *arguments: fit(layer, *arguments))
    ran = command("train", "rule=swta", "label_fraction=0.1,0.2", "stages=[pretrain,finetune,evaluate]", "-m")
    assert ran.code == 0, ran.err
    assert fit.call_count == 1
    states = [
        load_file(directory / "model.safetensors")
        for stage in ("pretrain", "finetune")
        for directory in ran.directories(stage)
    ]
    assert len(states) == 3
    names = [name for name in states[0] if name.startswith("whitening")]
    assert names
    assert all(torch.equal(state[name], states[0][name]) for state in states for name in names)


def test_whitening_is_fitted_on_training_images_alone_and_on_20_000_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation, test and unlabelled images are black here, and the whitening is fitted on no black image."""
    seen: list[torch.Tensor] = []
    fit = Whitening.fit

    def watched(layer: Whitening, batches: Iterable[torch.Tensor], smoothing: float) -> None:
        seen.append(torch.cat(list(batches)))
        fit(layer, seen[-1].split(1000), smoothing)

    monkeypatch.setattr(Whitening, "fit", watched)
    config = loaded("dataset=digits", "rule=swta", "gpu=cpu")
    validation, test, unlabelled = (torch.tensor([k]) for k in range(3))
    for count, used in ((500, 500), (25_000, 20_000 // BATCH_SIZE * BATCH_SIZE)):
        draws = torch.Generator().manual_seed(0)
        pixels = torch.randint(1, 256, (3 + count, 3, 4, 4), dtype=torch.uint8, generator=draws)
        pixels[:3] = 0
        dataset = Dataset(
            "digits", ("a",), InMemory(pixels), torch.zeros(3 + count, dtype=torch.int64),
            torch.arange(3, 3 + count), validation, test, unlabelled, "00",
        )  # fmt: skip
        layer, expected = Whitening(3, 4), Whitening(3, 4)
        compute, statistics = set_up(config.gpu), (torch.zeros(3), torch.ones(3))
        fit_whitening(
            Context(
                config, "pretrain", config.settings["pretrain"], dataset, nn.Sequential(layer), compute, statistics,
                untrained=True, resumed=False,
            )
        )  # fmt: skip
        assert len(seen[-1]) == used
        assert seen[-1].min() > 0
        fit(expected, [seen[-1]], 0.1)
        torch.testing.assert_close(layer.matrix, expected.matrix)
        assert not torch.equal(layer.matrix, torch.eye(48))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", pytest.param("vgg11_bn", marks=pytest.mark.marathon), "convnext_tiny"])
def test_networks_of_torchvision_learn_and_are_fine_tuned(command: Command, name: str) -> None:
    words = ("dataset.train_samples=70", "dataset.test_samples=20", "finetune.epochs=1", "pretrain.epochs=1")
    ran = command("train", f"model=torchvision:{name}", "pretrain.lr=0.01", *words)
    assert ran.code == 0, ran.err
    (epoch,) = epochs(ran.directories("pretrain")[0])
    assert len(epoch["layers"]) > 8
    assert all(layer["update"] > 0 for layer in epoch["layers"].values())
