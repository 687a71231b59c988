"""Model files: `load_model`, `init_from`, and the messages for files that do not fit."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fasthebb.card import ModelCard
from fasthebb.model_file import load_model, read_model
from fasthebb_cli.run.record import save_model
from tests.conftest import Ran

Command = Callable[..., Ran]


@pytest.mark.slow
def test_load_model_gives_the_network_that_was_measured(command: Command) -> None:
    ran = command("train", "rule=swta", "label_fraction=0.2")
    assert ran.code == 0, ran.err
    (directory,) = ran.directories("finetune")
    network = load_model(directory)
    assert not network.training
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    weights = load_file(directory / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


@pytest.mark.slow
def test_an_evaluation_leads_to_the_model_it_measured_but_a_training_stage_to_no_other(command: Command) -> None:
    ran = command("train", "label_fraction=0.2", "pretrain.epochs=1")
    assert ran.code == 0, ran.err
    (learnt,), (measured,) = ran.directories("finetune"), ran.directories("evaluate")
    weights, card = read_model(measured)
    assert card.taught
    assert all(torch.equal(weights[name], value) for name, value in load_file(learnt / "model.safetensors").items())
    (learnt / "model.safetensors").unlink()  # as if it had not finished; the pre-training stage before it has one
    with pytest.raises(ValueError, match="no model at"):
        read_model(learnt)


@pytest.mark.slow
def test_init_from_another_data_set_keeps_all_but_the_classifier(command: Command, tmp_path: Path) -> None:
    (origin,) = command("pretrain").directories("pretrain")
    changed = dict(load_file(origin / "model.safetensors"))
    ran = command("finetune", f"init_from={origin}", "finetune=frozen", "label_fraction=0.2")
    assert ran.code == 0, ran.err
    (directory,) = ran.directories("finetune")
    after = load_file(directory / "model.safetensors")
    assert torch.equal(after["conv1.0.weight"], changed["conv1.0.weight"])
    assert len(ran.directories("pretrain")) == 1


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "is damaged or no safetensors file"),
        (lambda path: path.write_bytes(b""), "is damaged or no safetensors file"),
        (lambda path: save_file({"x": torch.zeros(1)}, path), "was not written by fasthebb"),
    ],
    ids=["cut short", "empty", "foreign"],
)
@pytest.mark.slow
def test_a_model_file_that_can_not_be_used_is_named(
    command: Command, damage: Callable[[Path], None], expected: str
) -> None:
    (origin,) = command("pretrain").directories("pretrain")
    model = origin / "model.safetensors"
    damage(model)
    for words in (["train"], ["finetune", f"init_from={model}"]):
        ran = command(*words)
        assert ran.code == 2
        assert ran.err.count("\n") == 1
        assert str(model) in ran.err
        assert expected in ran.err


@pytest.mark.slow
def test_weights_of_another_network_are_refused_by_layer(command: Command) -> None:
    (origin,) = command("pretrain").directories("pretrain")
    ran = command("finetune", f"init_from={origin}", "model.width=0.05")
    assert ran.code == 2
    assert "conv1.0.weight has shape" in ran.err


def test_a_module_that_occurs_twice_is_saved(tmp_path: Path) -> None:
    shared = nn.Linear(4, 4)
    network = nn.Sequential(OrderedDict(a=shared, act=nn.ReLU(), b=shared))
    save_model(tmp_path / "model.safetensors", network, ModelCard("own", {}, 1, 2, [], [0.0], [1.0]))
    weights, _ = read_model(tmp_path / "model.safetensors")
    assert torch.equal(weights["a.weight"], shared.weight)
    assert torch.equal(weights["b.weight"], shared.weight)


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    network = nn.Linear(2, 2, dtype=torch.complex64)
    save_model(tmp_path / "model.safetensors", network, ModelCard("own", {}, 1, 2, [], [0.0], [1.0]))
    with pytest.raises(ValueError, match=r"model.safetensors: (bias|weight) has complex numbers"):
        read_model(tmp_path / "model.safetensors")
