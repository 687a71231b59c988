"""A user's own code that fails is one line: the key, the file, the line and the error."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Ran

Command = Callable[..., Ran]
WORDS = {
    "rule.name": ("rule={}:made", "dataset=digits"),
    "model.name": ("model={}:made", "dataset=digits"),
    "dataset.name": ("dataset={}:made",),
}


def refused(command: Command, folder: Path, key: str, module: str, place: str, error: str) -> None:
    words = [word.format(module) for word in WORDS[key]]
    ran = command("pretrain", *words, "gpu=cpu", "pretrain.epochs=1", small=False)
    assert ran.code == 2, ran.err
    assert ran.err.startswith(f"error: {key}={module}:made: {folder / place}: {error}"), ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("key", WORDS)
@pytest.mark.parametrize(
    ("text", "line", "error"),
    [
        ("import torch\ndef made(:\n", 2, "SyntaxError: invalid syntax"),
        ("import torch\n\nx = torhc.zeros(1)\n", 3, "NameError: name 'torhc' is not defined"),
        ("from torch import no_such\n", 1, "ImportError: cannot import name 'no_such' from 'torch'"),
        ("import no_such_package\n", 1, "ModuleNotFoundError: No module named 'no_such_package'"),
        ("import torch\ntorch.zeros(2).view(3)\n", 2, "RuntimeError: shape '[3]' is invalid for input of size 2"),
    ],
)
def test_a_module_that_fails_on_import(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, text: str, line: int, error: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"fails_{key.partition('.')[0]}_{error.partition(':')[0].lower()}"
    (tmp_path / f"{module}.py").write_text(text)
    refused(command, tmp_path, key, module, f"{module}.py, line {line}", error)


def test_a_module_beside_it_that_fails_is_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "beside_it.py").write_text("\n\n1 / 0\n")
    (tmp_path / "fails_beside.py").write_text("import beside_it\n")
    refused(
        command, tmp_path, "rule.name", "fails_beside", "beside_it.py, line 3", "ZeroDivisionError: division by zero"
    )


@pytest.mark.parametrize("key", WORDS)
def test_a_function_that_fails_when_it_is_called(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"fails_called_{key.partition('.')[0]}"
    (tmp_path / f"{module}.py").write_text("def made(*given, **named):\n    return inner()\n\ndef inner():\n    x.y\n")
    refused(command, tmp_path, key, module, f"{module}.py, line 5", "NameError: name 'x' is not defined")


def test_a_network_whose_forward_pass_fails(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "fails_forward.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Flatten):\n"
        "    def forward(self, x):\n"
        "        return self.no_such_layer(x)\n"
        "def made(channels, size, classes):\n"
        "    return Net()\n"
    )
    error = "AttributeError: 'Net' object has no attribute 'no_such_layer'"
    refused(command, tmp_path, "model.name", "fails_forward", "fails_forward.py, line 4", error)


def test_what_the_users_code_says_itself_is_told_as_it_is(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    data = "from fasthebb_cli.errors import InputError\ndef made(config):\n    raise InputError('mount the disk')\n"
    (tmp_path / "says_data.py").write_text(data)
    (tmp_path / "says_net.py").write_text("def made(channels, size, classes):\n    raise ValueError('size is odd')\n")
    ran = command("pretrain", "dataset=says_data:made", "gpu=cpu", small=False)
    assert (ran.code, ran.err) == (2, "error: mount the disk\n")
    ran = command("pretrain", "dataset=digits", "model=says_net:made", "gpu=cpu", small=False)
    assert (ran.code, ran.err) == (2, "error: model says_net:made: size is odd\n")


def test_a_traceback_is_shown_if_it_is_asked_for(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FASTHEBB_TRACEBACK", "1")
    (tmp_path / "fails_shown.py").write_text("1 / 0\n")
    ran = command("pretrain", "rule=fails_shown:made", "dataset=digits", "gpu=cpu", small=False)
    assert "ZeroDivisionError" in ran.err
    assert "Traceback" in ran.err


@pytest.mark.parametrize("key", WORDS)
@pytest.mark.parametrize("text", ["import sys\nsys.exit(0)\n", "import sys\ndef made(*a, **k): sys.exit(0)\n"])
def test_code_that_ends_the_program_is_an_error(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, text: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"leaves_{abs(hash((key, text)))}"
    (tmp_path / f"{module}.py").write_text(text)
    refused(command, tmp_path, key, module, f"{module}.py, line 2", "it ends the program (0)")


def test_a_rule_that_gives_no_terms(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "gives_none.py").write_text("def made(y_NGK): return None\n")
    ran = command("pretrain", "rule=gives_none:made", "pretrain.epochs=1")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "the rule must return Terms, not NoneType" in ran.err


@pytest.mark.parametrize("key", WORDS)
def test_errors_without_a_line_of_the_users(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"with_a_null_{key.partition('.')[0]}"
    (tmp_path / f"{module}.py").write_bytes(b"import torch\0\n")
    words = [word.format(module) for word in WORDS[key]]
    ran = command("pretrain", *words, "gpu=cpu", "pretrain.epochs=1", small=False)
    assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
    assert f"{key}={module}:made: " in ran.err
    assert "null bytes" in ran.err


@pytest.mark.parametrize("word", ["dataset=os:system", "dataset=builtins:exec", "model=os:system"])
def test_functions_that_are_not_meant_for_it(command: Command, word: str) -> None:
    ran = command("pretrain", "dataset=digits", word, "gpu=cpu", "model.width=null", small=False)
    assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
    assert f"{word.replace('=', '.name=')}: its code: TypeError" in ran.err


@pytest.mark.parametrize("error", ["BaseException", "GeneratorExit"])
def test_errors_that_are_no_exceptions(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"raises_{error.lower()}"
    (tmp_path / f"{module}.py").write_text(f"def made(*a, **k):\n    raise {error}('no more')\n")
    refused(command, tmp_path, "model.name", module, f"{module}.py, line 2", f"{error}: no more")


NETWORK = """
import os
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, size, classes):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(channels, 4, 5), nn.ReLU(), nn.BatchNorm2d(4))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(4 * (size - 4)**2, classes))

    def forward(self, x):
        y = self.classifier(self.conv1(x))
        return {output}

def made(channels, size, classes):
    os.chdir("/")
    torch.set_default_dtype(torch.float64)
    return Net(channels, size, classes).float()
"""
OUTPUTS = {
    "y[:, :3]": "gives (2, 3) of torch.float32",
    "(y,)": "gives a tuple",
    "None": "gives a NoneType",
    "y.detach()": "gives scores without gradients",
    "torch.cat([y, y], 1)": "gives (2, 20) of torch.float32",
    "y[:1]": "gives (1, 10) of torch.float32",
    "y.long()": "gives (2, 10) of torch.int64",
}
LABELLED = ("train", "dataset=digits", "rule=none", "finetune.epochs=1", "label_fraction=0.1", "gpu=cpu")


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("how", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_a_network_that_gives_no_scores(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, how: list[str]
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"gives_{list(OUTPUTS).index(output)}_{len(how)}"
    (tmp_path / f"{module}.py").write_text(NETWORK.format(output=output))
    ran = command(*LABELLED, f"model={module}:made", *how, small=False)
    assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
    assert f"model.name={module}:made: {OUTPUTS[output]} for 2 images; it must give scores (2, 10)" in ran.err


def test_scores_that_are_not_finite_are_not_measured(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "not_finite.py").write_text(NETWORK.format(output="y if self.training else y * float('nan')"))
    ran = command(*LABELLED, "model=not_finite:made", small=False)
    assert (ran.code, ran.err.count("\n")) == (1, 1), ran.err
    assert "the network's scores are not finite" in ran.err


def test_what_own_code_changes_for_all_of_the_program_is_changed_back(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "changes_all.py").write_text(NETWORK.format(output="y"))
    ran = command(*LABELLED, "model=changes_all:made", small=False)
    assert ran.code == 0, ran.err
    assert Path.cwd() == tmp_path
    assert torch.get_default_dtype() == torch.float32


def test_a_network_of_other_numbers(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "of_doubles.py").write_text(
        "from torch import nn\n"
        "def made(channels, size, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, classes)).double()\n"
    )
    ran = command("pretrain", "dataset=digits", "model=of_doubles:made", "gpu=cpu", small=False)
    assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
    assert "model.name=of_doubles:made: 1.weight is torch.float64; a network must have torch.float32" in ran.err


RULES = {
    "fits_the_trial": ("    return Terms(gate=y if y.shape[0] <= 3 else y[:3])\n", "conv1.0: Terms.gate must have"),
    "fails_later": (
        "    assert y.shape[0] <= 3, 'too many'\n    return Terms(gate=y)\n",
        "line 4: AssertionError: ",
    ),
    "is_too_large": ("    if y.shape[0] > 3: raise MemoryError\n    return Terms(gate=y)\n", "out of memory; lower"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("how", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_a_rule_that_fails_in_a_step(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: list[str]
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    text, told = RULES[name]
    module = f"{name}_{len(how)}"
    (tmp_path / f"{module}.py").write_text(f"import torch\nfrom fasthebb import Terms\ndef made(y):\n{text}")
    ran = command("pretrain", f"rule={module}:made", "pretrain.lr=0.1", *how)
    assert (ran.code, ran.err.count("\n")) == (1, 1), ran.err
    assert ran.err.startswith("error: pretrain: "), ran.err
    assert told in ran.err


@pytest.mark.slow
def test_a_rule_that_switches_gradients_on_learns_as_without(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "switches.py").write_text(
        "import torch\nfrom fasthebb import Terms\n"
        "def quiet(y): return Terms(gate=y)\n"
        "def loud(y):\n    torch.set_grad_enabled(True)\n    return Terms(gate=y)\n"
    )
    learnt = []
    for function in ("quiet", "loud"):
        ran = command("pretrain", f"rule=switches:{function}", "pretrain.lr=1e-5", f"out={tmp_path / function}")
        assert ran.code == 0, ran.err
        (path,) = (tmp_path / function).glob("*/model.safetensors")
        learnt.append(load_file(path))
    assert learnt[0].keys() == learnt[1].keys()
    assert all(torch.equal(value, learnt[1][name]) for name, value in learnt[0].items())


SOURCE = """
import torch
from fasthebb_cli.data.collection import Collection

class Source:
    channels, size = 1, 32
    def __len__(self): return 200
    def read(self, indices):
        if len(indices) > 20:
            raise OSError(5, 'the disk is gone', 'a.png')
        return torch.zeros(len(indices), 1, 32, 32, dtype=torch.uint8) + indices[:, None, None, None].to(torch.uint8)

def made(config):
    return Collection(Source(), torch.arange(200) % 2, ('a', 'b'), train=torch.arange(200), digest='1')
"""


def test_images_that_can_not_be_read_any_more(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the run has begun, as on a disk that goes away."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "goes_away.py").write_text(SOURCE)
    ran = command("pretrain", "dataset=own", "dataset.name=goes_away:made", "dataset.size=32")
    assert (ran.code, ran.err.count("\n")) == (1, 1), ran.err
    assert ran.err.startswith("error: pretrain: "), ran.err
    assert "the disk is gone" in ran.err
