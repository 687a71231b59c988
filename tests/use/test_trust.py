"""What a model file of a stranger can make of `predict` and `features`: no code is run, and no memory is asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fasthebb.model_file import load_model
from tests.conftest import Ran
from tests.use.conftest import Taught

pytestmark = pytest.mark.xdist_group("taught")

Command = Callable[..., Ran]


def forged(
    taught: Taught,
    path: Path,
    changes: dict[str, Any] | str,
    spoil: Callable[[dict[str, Tensor]], object] = lambda weights: None,
) -> Path:
    """A copy of a trained model whose card has other values, or is another text, and whose weights were spoilt."""
    with safe_open(taught.finetune / "model.safetensors", framework="pt") as file:
        card = json.loads((file.metadata() or {})["fasthebb"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    spoil(weights)
    text = changes if isinstance(changes, str) else json.dumps(card | changes)
    save_file(weights, path, metadata={"fasthebb": text})
    return path


STRANGE: dict[str, dict[str, Any]] = {
    "torch.hub": {"model": "torch.hub:load", "arguments": {"repo_or_dir": "x/y", "model": "z"}},
    "hydra": {"model": "hydra.utils:instantiate", "arguments": {"config": {"_target_": "os.getpid"}}},
    "os": {"model": "os:mkdir", "arguments": {}},
}


@pytest.mark.parametrize("verb", ["predict", "features"])
@pytest.mark.parametrize("case", STRANGE)
def test_a_card_names_no_code_that_is_run(
    command: Command, taught: Taught, tmp_path: Path, case: str, verb: str
) -> None:
    model = forged(taught, tmp_path / "m.safetensors", STRANGE[case])
    ran = command(verb, str(model), str(taught.test), f"out={tmp_path / 'out'}", small=False)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert f"if you know this code, say trust={STRANGE[case]['model']}" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
    with pytest.raises(ValueError, match="if you know this code"):
        load_model(model)


def test_code_that_the_user_names_is_run_and_that_is_said(
    command: Command, taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets_of_mine.py").write_text(
        "from fasthebb import conv6\ndef small(channels, size, classes):\n"
        "    return conv6(channels=channels, size=size, classes=classes, width=0.03)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = {"model": "nets_of_mine:small", "arguments": {}}
    model = forged(taught, tmp_path / "m.safetensors", own)
    words = [str(taught.test), f"out={tmp_path / 'p.csv'}", "device=cpu"]
    assert command("predict", str(model), *words, "trust=os:mkdir", small=False).code == 2
    ran = command("predict", str(model), *words, "trust=nets_of_mine:small", small=False)
    assert ran.code == 0, ran.err
    assert "nets_of_mine:small was run to build the network, as trust allows" in ran.out


DAMAGED: dict[str, tuple[dict[str, Any] | str, str]] = {
    "no JSON": ("{", "it is no JSON"),
    "no mapping": ("[]", "it must be a mapping"),
    "deep": ("[" * 100_000, "it is nested too deeply"),
    "a missing key": ("{}", "it has no model"),
    "an unknown key": ({"licence": "mine"}, "it has licence, which is unknown"),
    "a number for a name": ({"model": 3}, "model must be a text, not 3"),
    "a text for a number": ({"size": "32"}, "size must be a whole number, not '32'"),
    "true for a number": ({"size": True}, "size must be a whole number, not True"),
    "a class without a name": ({"classes": ["a", None]}, "classes[1] must be a text, not None"),
    "two classes alike": ({"classes": ["a"] * 10}, "two of its classes have the same name"),
    "another fit": ({"fit": "zoom"}, "fit is zoom, not crop, pad, stretch"),
    "no colour": ({"background": "weird"}, "background must be a colour, as white or '#7f7f7f', not 'weird'"),
    "no mean": ({"mean": []}, "mean and std must have 3 numbers each"),
    "no deviation": ({"std": [0.0, 1.0, 1.0]}, "those of std be above 0"),
    "not finite": ({"mean": [float("nan")] * 3}, "mean[0] must be a number, not nan"),
    "more labels than none": ({"labels_train": -1}, "labels_train is -1"),
    "an image of no pixel": ({"size": 0}, "size is 0"),
    "an image of a planet": ({"size": 10**9}, "size is 1000000000"),
    "half a closed form": ({"closed_form": {"pool": 1}}, "closed_form must have layers, pool, root, mirror"),
    "a network of petabytes": ({"arguments": {"width": 1e6}}, "its weights do not fit the network conv6"),
    "a billion channels": ({"channels": 4096, "mean": [0.0] * 4096, "std": [1.0] * 4096}, "its weights do not fit"),
    "strange arguments": ({"model": "torchvision:resnet18", "arguments": {"groups": 0}}, "resnet18: BasicBlock only"),
    "stranger arguments": ({"model": "torchvision:vgg11", "arguments": {"dropout": []}}, "torchvision:vgg11: '<' not"),
    "a billion layers": (
        {"model": "torchvision:mobilenet_v2", "arguments": {"inverted_residual_setting": [[1, 16, 10**9, 1]]}},
        "more than 10,000 tensors",
    ),
    "no number": ({"arguments": {"dropout": float("nan")}}, "arguments has a number that is not finite"),
    "another norm": ({"arguments": {"norm": "evil"}}, "model.norm must be one of relative, batch, not 'evil'"),
    "a number for a norm": ({"arguments": {"norm": 5}}, "model.norm must be one of relative, batch, not 5"),
    "another activation": ({"arguments": {"activation": "exp"}}, "model.activation must be one of relu, tanh"),
    "a text for a width": ({"arguments": {"width": "1"}}, "model.width must be a number, not '1'"),
    "half a character": ({"classes": ["\ud800", *map(str, range(9))]}, "it has a text with half a character in it"),
    "half a character in a key": ({"arguments": {"\ud800": 1}}, "it has a text with half a character in it"),
    "unknown arguments": ({"arguments": {"depth": 3}}, "unknown key model.depth"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", DAMAGED)
def test_a_card_that_can_not_be_used_is_one_line(command: Command, taught: Taught, tmp_path: Path, case: str) -> None:
    changes, message = DAMAGED[case]
    model = forged(taught, tmp_path / "m.safetensors", changes)
    ran = command("predict", str(model), str(taught.test), f"out={tmp_path / 'p.csv'}", "device=cpu", small=False)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert str(model) in ran.err
    assert message in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("verb", ["predict", "features"])
def test_weights_that_are_not_finite_are_refused(command: Command, taught: Taught, tmp_path: Path, verb: str) -> None:
    def spoil(weights: dict[str, Tensor]) -> None:
        weights["conv1.0.weight"][0, 0, 0, 0] = float("nan")

    model = forged(taught, tmp_path / "m.safetensors", {}, spoil)
    ran = command(verb, str(model), str(taught.test), f"out={tmp_path / 'out'}", small=False)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "m.safetensors: conv1.0.weight is not finite" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_names_that_are_numbers_and_what_is_shown_stay_as_they_are(
    command: Command, taught: Taught, tmp_path: Path
) -> None:
    model = forged(taught, tmp_path / "m.safetensors", {"classes": ["-1", "+2.5", *(f"-{k}-" for k in range(8))]})
    out = tmp_path / "p.csv"
    ran = command("predict", str(model), str(taught.test), f"out={out}", "device=cpu", small=False)
    assert ran.code == 0, ran.err
    found = {line.split(",")[1] for line in out.read_text().splitlines()[1:]}
    assert found & {"-1", "+2.5"}
    assert found - {"-1", "+2.5"} <= {f"'-{k}-" for k in range(8)}
    assert "'" not in ran.out


def test_cells_that_a_spreadsheet_would_run_are_guarded(command: Command, taught: Taught, tmp_path: Path) -> None:
    model = forged(taught, tmp_path / "m.safetensors", {"classes": [f"={k}+1" for k in range(10)]})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "=1+1.png").write_bytes(next(taught.test.rglob("*.png")).read_bytes())
    out = tmp_path / "p.csv"
    ran = command("predict", str(model), str(tmp_path / "photos"), f"out={out}", "device=cpu", small=False)
    assert ran.code == 0, ran.err
    path, name, _ = out.read_text().splitlines()[1].split(",")
    assert path == "./=1+1.png"
    assert name.startswith("'=")
