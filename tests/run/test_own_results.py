"""What a user's own rule or data set gives is checked before anything runs, for a dry run as well."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fasthebb.rules import TOWARDS, Terms, check_terms
from tests.conftest import Ran

Command = Callable[..., Ran]

HEAD = """
import torch
from fasthebb_cli.data.collection import Collection, InMemory, from_arrays

x = torch.zeros(90, 3, 32, 32, dtype=torch.uint8)
y = torch.arange(90) % 3


def arrays(images=x, labels=y, classes=("a", "b", "c")):
    return from_arrays({"train": (images, labels)}, classes, 32)


def parts(**changes):
    usual = {"source": InMemory(x), "labels": y, "classes": ("a", "b", "c"), "train": torch.arange(90), "digest": "d"}
    return Collection(**(usual | changes))


class Source(InMemory):
    def read(self, indices):
        if self.fails:
            raise OSError("gone")
        return self.pixels[:0]


def source(fails):
    made = Source(x)
    made.fails = fails
    return made


def made(config):
    return """
SETS = {
    "arrays(x / 255)": "images of train must be uint8 (n, C, H, W), not torch.float32",
    "arrays(x.permute(0, 2, 3, 1))": "images of train must be (n, C, H, W), and 32 channels are too many",
    "arrays(labels=y + 0.5)": "labels of train must be integers (90,), not torch.float32",
    "arrays(labels=y[:-3])": "labels of train must be integers (90,), not torch.int64 (87,)",
    "arrays(labels=y + 1)": "its labels must be in -1 to 2, not in 1 to 3",
    "arrays(labels=y - 1)": "its train has images without a label; name them in unlabelled",
    "arrays(classes=('a', 'b', 'a'))": "its classes must be different names",
    "parts(train=y < 1)": "its train must be a tensor of int64 (N,), not torch.bool (90,)",
    "parts(train=torch.arange(90) - 1)": "its train must be in 0 to 89, not in -1 to 88",
    "parts(train=torch.arange(0))": "its train is empty",
    "parts(train=torch.arange(90) // 2)": "an image occurs twice in its train",
    "parts(test=torch.arange(10))": "an image occurs twice in its train, test",
    "parts(labels=[0] * 90)": "its labels must be a tensor of int64 (N,), not list",
    "parts(source=None)": "its source must have read, size and channels, not be NoneType",
    "parts(source=source(False))": "its source must give uint8 (1, 3, 32, 32) for one image, not torch.uint8 (0,",
    "parts(source=source(True))": "OSError: gone",
}


@pytest.mark.parametrize("expression", SETS)
def test_a_data_set_that_can_not_be_used(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expression: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"makes_{list(SETS).index(expression)}"
    (tmp_path / f"{module}.py").write_text(HEAD + expression + "\n")
    ran = command("train", f"dataset={module}:made", "--dry-run", small=False)
    assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
    assert ran.err.count(f"dataset.name={module}:made: ") == 1
    assert SETS[expression] in ran.err


Y = torch.rand(3, 2, 4)
TERMS: dict[str, tuple[dict[str, object], str]] = {
    "one patch": ({"gate": Y[:1]}, r"Terms.gate must have the shape \(3, 2, 4\) for .*, not \(1, 2, 4\)"),
    "other order": ({"gate": Y.transpose(1, 2)}, r"Terms.gate must have the shape"),
    "doubles": ({"gate": Y.double()}, r"Terms.gate must be a tensor of torch.float32, .*, not torch.float64"),
    "sparse": ({"gate": Y.to_sparse()}, r"Terms.gate must be a tensor of torch.float32, .* torch.sparse_coo"),
    "no gate": ({"gate": None}, r"Terms.gate must be a tensor of torch.float32, .* not NoneType"),
    "another recombination": ({"recombination": Y[:2]}, r"Terms.recombination must have the shape"),
    "a number for a share": ({"share": 3.0}, r"Terms.share must be a tensor of torch.float32, .* not float"),
    "a share of patches": ({"share": Y}, r"Terms.share must have the shape \(2, 4\)"),
    "another mask": ({"mask": "triu"}, r"Terms.mask must be one of tril, diag, full, none, not triu"),
    "no mask": ({"mask": None}, r"Terms.mask must be one of tril, diag, full, none, not None"),
    "elsewhere": ({"towards": "moon"}, r"Terms.towards must be one of patches, weights, nothing, not moon"),
    "no truth": ({"power": "no"}, r"Terms.power must be true or false, not no"),
    "negative damping": ({"damping": -1.0}, r"Terms.damping must be a number of at least 0, not -1.0"),
    "a word for damping": ({"damping": "a"}, r"Terms.damping must be a number of at least 0, not a"),
}


@pytest.mark.parametrize("case", TERMS)
def test_terms_that_can_not_be_used(case: str) -> None:
    changes, message = TERMS[case]
    with pytest.raises(ValueError, match=message):
        check_terms(Terms(**({"gate": Y} | changes)), Y)  # type: ignore[arg-type]
    assert TOWARDS == ("patches", "weights", "nothing")


def test_a_rule_that_gives_such_terms_is_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "half_a_gate.py").write_text(
        "from fasthebb.rules import Terms\n\ndef made(y):\n    return Terms(y[..., :1])\n"
    )
    for how in ([], ["--dry-run"]):
        ran = command("pretrain", "dataset=digits", "rule=half_a_gate:made", "pretrain.epochs=1", *how, small=False)
        assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
        assert "rule half_a_gate:made or pretrain: Terms.gate must have the shape" in ran.err


def test_own_rules_can_be_swept(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    rules = [f"def {name}(y):\n    return Terms({terms})\n" for name, terms in (("one", "y, y"), ("two", "y"))]
    (tmp_path / "several.py").write_text("\n".join(["from fasthebb.rules import Terms", *rules]))
    ran = command("pretrain", "-m", "rule=several:one,several:two", "--dry-run")
    assert ran.code == 0, ran.err
    assert ran.out.count("two") >= 2
    ran = command("pretrain", "-m", "rule=several:one,hpca", "--dry-run")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "a sweep goes over choices of rule or over functions of your own, not both" in ran.err
