"""Fine-tuning: what is frozen stays to the bit, and few labels still get enough steps."""

import dataclasses
import json
from collections.abc import Callable

import pytest
import torch
import torch._dynamo.utils
from safetensors.torch import load_file
from torch import nn

from fasthebb_cli.config import FinetuneConfig
from fasthebb_cli.run.weights import load_model
from fasthebb_cli.stages.finetune import _groups
from tests.conftest import Ran


def test_few_labels_still_get_200_steps(command: Callable[..., Ran]) -> None:
    ran = command("train", "rule=none", "label_fraction=0.02", "finetune.epochs=null", "--dry-run")
    assert ran.code == 0, ran.err
    command("finetune", "rule=none", "label_fraction=0.02", "finetune.epochs=null")  # 20 labels: an epoch is one step
    assert ran.results("finetune")["epochs"] == 200
    command("finetune", "rule=none", "label_fraction=0.02", "finetune.epochs=3", "seed=1")
    assert [json.loads((d / "results.json").read_text())["epochs"] for d in ran.directories("finetune")] == [200, 3]


@pytest.mark.parametrize(("choice", "moves"), [("frozen", False), ("default", True)])
def test_frozen_features_stay_to_the_bit(command: Callable[..., Ran], choice: str, moves: bool) -> None:
    ran = command("train", f"finetune={choice}", "label_fraction=0.2")
    assert ran.code == 0, ran.err
    before, after = (load_file(ran.directories(name)[0] / "model.safetensors") for name in ("pretrain", "finetune"))
    features = [name for name in before if not name.startswith("classifier.")]
    assert all(torch.equal(before[name], after[name]) for name in features) is not moves
    assert not torch.equal(before["classifier.1.weight"], after["classifier.1.weight"])


def test_some_layers_stay_as_the_rule_made_them_while_backprop_trains_the_others(command: Callable[..., Ran]) -> None:
    """A hybrid: conv1 and conv2 by the rule, the rest by backprop; batch norm of the frozen ones stands still too."""
    hybrid = ("pretrain.include=[conv1,conv2]", "finetune.layer_lr={conv1: 0, conv2*: 0, fc5: 0.1}")
    ran = command("train", *hybrid, "label_fraction=0.2")
    assert ran.code == 0, ran.err
    before, after = (load_file(ran.directories(name)[0] / "model.safetensors") for name in ("pretrain", "finetune"))
    for name in before:
        assert torch.equal(before[name], after[name]) is name.startswith(("conv1", "conv2")), name


def test_factors_on_the_rate_by_layer() -> None:
    network = nn.ModuleDict({"conv1": nn.Linear(2, 2), "conv2": nn.Linear(2, 2), "fc3": nn.Linear(2, 2)})
    settings = FinetuneConfig(
        batch_size=2, lr=1.0, schedule="cosine", weight_decay=0, momentum=0, layer_lr={"conv*": 0.1, "conv2": 5}
    )
    rates = {id(p): group["lr"] for group in _groups(network, settings, 0.5) for p in group["params"]}
    found = [rates[id(network[name].weight)] for name in network]
    assert found == [0.05, 0.05, 0.5]  # the first pattern that matches counts
    assert len(_groups(network, dataclasses.replace(settings, layer_lr={}), 0.5)) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_compiled_networks_learn_the_same(command: Callable[..., Ran]) -> None:
    plain = command("train", "rule=none", "label_fraction=0.2", "model.dropout=0")
    loss = plain.results("finetune")["loss"]
    counters = torch._dynamo.utils.counters
    assert not counters["stats"]["unique_graphs"]
    compiled = command("train", "rule=none", "label_fraction=0.2", "model.dropout=0", "gpu.compile=true", "force=true")
    assert compiled.code == 0, compiled.err
    assert counters["stats"]["unique_graphs"] > 0
    assert compiled.results("finetune")["loss"] == pytest.approx(loss, rel=1e-3)


def test_fine_tuning_after_a_layer_shares_the_pretraining_and_is_evaluated_whole(command: Callable[..., Ran]) -> None:
    ran = command("train", "-m", "finetune=few_labels", "finetune.layer=conv1,conv2", "label_fraction=0.2")
    assert ran.code == 0, ran.err
    assert len(ran.directories("pretrain")) == 1
    shapes = [load_file(d / "model.safetensors")["classifier.3.weight"].shape for d in ran.directories("finetune")]
    assert sorted(shapes) == [(10, 3 * 16), (10, 4 * 16)]
    network = load_model(ran.directories("finetune")[0])
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_a_cut_network_can_not_grow_again(command: Callable[..., Ran]) -> None:
    stages = ("+finetune@extra.deeper=few_labels", "extra.deeper.layer=conv3", "stages=[pretrain,finetune,deeper]")
    ran = command("train", "finetune=few_labels", *stages)
    assert ran.code == 2
    assert "no layer 'conv3'; the network has: conv1, conv2" in ran.err
