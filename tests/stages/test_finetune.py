"""Fine-tuning: what is frozen stays to the bit, and few labels still get enough steps."""

from collections.abc import Callable

import pytest
import torch
import torch._dynamo.utils
from safetensors.torch import load_file

from fasthebb_cli.config import FinetuneConfig
from fasthebb_cli.stages.finetune import phases
from tests.conftest import Ran


def settings(epochs: int, alone: int, least: int) -> FinetuneConfig:
    return FinetuneConfig("finetune", epochs, 64, 0.1, "cosine", 0.0, 0.9, 1.0, alone, least)


@pytest.mark.parametrize(
    ("epochs", "alone", "least", "expected"),
    [(20, 0, 0, (0, 20)), (20, 0, 40, (0, 20)), (20, 0, 100, (0, 50)), (20, 10, 120, (20, 40))],
)
def test_phases_are_lengthened_in_proportion(epochs: int, alone: int, least: int, expected: tuple[int, int]) -> None:
    assert phases(settings(epochs, alone, least), steps=2) == expected


@pytest.mark.parametrize(("choice", "moves"), [("frozen", False), ("default", True)])
def test_frozen_features_stay_to_the_bit(command: Callable[..., Ran], choice: str, moves: bool) -> None:
    ran = command("train", f"finetune={choice}", "label_fraction=0.2")
    assert ran.code == 0, ran.err
    before, after = (load_file(ran.directories(name)[0] / "model.safetensors") for name in ("pretrain", "finetune"))
    features = [name for name in before if not name.startswith("classifier.")]
    assert all(torch.equal(before[name], after[name]) for name in features) is not moves
    assert not torch.equal(before["classifier.1.weight"], after["classifier.1.weight"])


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
