"""Words as people type them: paths are text, whatever Hydra's grammar says, and what can't be meant is one line."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SMALL, Ran

pytestmark = pytest.mark.slow

Command = Callable[..., Ran]
NAMES = ["2024_02_13", "a b", "ü(1)", "it's", "a=b", "a#b", "1e3", "true", "[x]", "a{b}", 'a"b', "a\\b", "007", "a,b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_text(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    ran = command("train", *SMALL, f"out={name}", "--dry-run", small=False)
    assert ran.code == 0, ran.err
    assert f"{name}/digits-" in ran.out


@pytest.mark.parametrize("name", ["2024_02_13", "it's (1) #ü=x"])
def test_so_it_is_in_a_sweep_and_for_every_key(command: Command, tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    ran = command(
        "train", *SMALL, "-m", f"out={place}", "seed=0,1", "stages=[pretrain]", "pretrain.epochs=1", small=False
    )
    assert ran.code == 0, ran.err
    (weights,) = place.glob("*seed0-pretrain-*")
    ran = command("finetune", *SMALL, f"out={place}", f"init_from={weights}", "finetune.epochs=1", small=False)
    assert ran.code == 0, ran.err
    ran = command("pretrain", "dataset=image_folder", f"dataset.root={place / 'none'}", small=False)
    assert ran.code == 2
    assert f"no folder {place / 'none'}" in ran.err


def test_what_a_user_quotes_or_takes_from_elsewhere_stays_so(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("PLACE", "there")
    for word, name in (("out='a b'", "a b"), ('out="a b"', "a b"), ("out=${oc.env:PLACE}", "there")):
        ran = command("train", *SMALL, word, "--dry-run", small=False)
        assert ran.code == 0, ran.err
        assert f" {name}/digits-" in ran.out


REFUSED = {
    "=5": "unknown key ;",
    "verb=evaluate": "verb is the first word of the command",
    "experiment=3": "experiment=3: a group needs a choice",
    "gpu.device=cpu:1": "gpu.device=cpu:1: there is one cpu",
    "pretrain.lr=1e300": "pretrain.lr must be above 0 and at most 1e+30, not 1e+300",
    "pretrain.lr=1e400": "pretrain.lr must be above 0 and at most 1e+30, not inf",
    "gpu=[1]": "a group needs a choice; gpu can be:",
    "rule=[swta,../model/conv6]": "a group needs a choice; rule can be:",
    "label_fraction=${oc.env:NOT_THERE}": "label_fraction: KeyError raised while resolving interpolation",
    "objective=???": "objective has no value; set it",
    "stages={}": "stages must be a list, as in 'stages=[a,b]'",
    "extra=[1,2]": "extra must be a mapping, as in 'extra={name:value}'",
    "pretrain.include={}": "pretrain.include must be a list",
    "rule.options=3": "rule.options must be a mapping",
    "rule=../model/conv6": "a group needs a choice; rule can be:",
    "model=/etc/passwd": "a group needs a choice; model can be:",
    "stages=pretrain": "stages must be a list, as in 'stages=[pretrain]'",
    "leave_out=1/1": "leave_out must be a fold and the number of folds, 2 to 9999",
    "finetune.weight_decay=1e300": "finetune.weight_decay must be between 0 and 1e+30, not 1e+300",
    "finetune.features_lr=1e7": "finetune.features_lr must be between 0 and 1000000.0, not 10000000.0",
    "pretrain.layer_lr={conv1:1e7}": "pretrain.layer_lr.conv1 must be between 0 and 1,000,000, not 10000000.0",
    "pretrain.layer_lr={convl:0}": "pretrain.layer_lr: no layer is called 'convl'; the network has: conv1",
    "pretrain.layer_lr.convl=0": "pretrain.layer_lr: no layer is called 'convl'",
    "pretrain.include=[convl]": "pretrain.include: no layer is called 'convl'",
    "finetune.layer_lr={convl:0}": "finetune.layer_lr: no layer is called 'convl'",
    "rule.layer_options={convl:{damping:1}}": "rule.layer_options: no layer is called 'convl'",
    "pretrain.optimizer_options={momentun:0.9}": "pretrain.optimizer_options: SGD does not take them",
    "pretrain.optimizer_options={momentum:x}": "pretrain.optimizer_options: SGD does not take them",
    f"out={'x' * 300}": "out: a folder's or file's name takes 300 bytes, and can have 255",
    f"out={os.fsdecode(b'caf')}{chr(0xDCE9)}": "out has bytes that are no UTF-8",
}


@pytest.mark.parametrize("word", REFUSED, ids=[word[:40].encode("ascii", "replace").decode() for word in REFUSED])
@pytest.mark.parametrize("how", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_what_can_not_be_meant_is_one_line_also_for_a_dry_run(command: Command, word: str, how: list[str]) -> None:
    ran = command("train", word, *how)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert REFUSED[word] in ran.err
    assert not any(ran.runs.glob("*"))


SWEEPS = {
    "seed=range(0,0)": "there is no value in it",
    "seed=range(3,1)": "there is no value in it",
    "seed=range(0,5,0)": "it makes no list of values",
    "seed=range(0,5,0.0)": "it makes no list of values",
    "seed=range(0,nan)": "it makes no list of values",
    "pretrain.lr=interval(0.3,0.01)": "its first number must be below its second",
    "seed=range(0,1000000000)": "more than 10,000 cells in one sweep",
    "rule=range(0,1000000000)": "more than 10,000 cells in one sweep",
    "finetune.layers=range(0,1000000000)": "more than 10,000 cells in one sweep",
    "seed=range(0,inf)": "more than 10,000 cells in one sweep",
    "rule=swta,../model/conv6": "a group needs a choice; rule can be:",
}


@pytest.mark.parametrize("word", SWEEPS)
def test_a_sweep_over_nothing_or_without_end_is_refused(command: Command, word: str) -> None:
    for how in ([], ["--dry-run"]):
        ran = command("train", "-m", word, *how)
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert SWEEPS[word] in ran.err


def test_places_that_are_not_there_are_one_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    monkeypatch.setenv("FASTHEBB_CONF", str(site))
    ran = command("train", "--dry-run")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert f"FASTHEBB_CONF={site}: there is no such folder" in ran.err
    (site / "rule").mkdir(parents=True)
    for name, content in (("latin", b"name: caf\xe9"), ("deep", b"name: " + b"[" * 5000)):
        (site / "rule" / f"{name}.yaml").write_bytes(content)
        ran = command("train", f"rule={name}", "--dry-run")
        assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
    monkeypatch.delenv("FASTHEBB_CONF")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    ran = command("train", "--dry-run")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "the working directory is gone" in ran.err
    monkeypatch.chdir(tmp_path)


def test_a_dry_run_runs_nothing_whatever_else_is_said(command: Command) -> None:
    ran = command("train", "--dry-run", "dry_run=false")
    assert ran.code == 0, ran.err
    assert not ran.directories("pretrain")


def test_a_message_quotes_no_more_than_fits_a_screen(command: Command) -> None:
    ran = command("train", "x" * 10**5)
    assert ran.code == 2
    assert len(ran.err) < 5000


def test_a_pattern_of_choices_is_a_sweep_over_those_that_match(command: Command) -> None:
    ran = command("train", "-m", "rule=glob(hpca_*)", "stages=[pretrain]", "--dry-run")
    assert ran.code == 0, ran.err
    assert {"hpca_adaptive", "hpca_tanh"} <= set(ran.out.replace("-", " ").split())
    ran = command("train", "-m", "rule=glob(zzz*)")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "rule=glob(zzz*): no choice matches; rule can be: bcm," in ran.err
    ran = command("train", "rule=glob(hpca_*)")
    assert (ran.code, ran.err.count("\n")) == (2, 1)


def test_an_empty_word_is_no_path(command: Command) -> None:
    ran = command("predict", "somewhere", "", small=False)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "an empty word is no path" in ran.err


def test_a_colour_is_text(command: Command) -> None:
    assert command("train", "dataset.background=#7f7f7f", "--dry-run").code == 0


@pytest.mark.parametrize("how", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_a_root_of_runs_that_lies_below_a_file(command: Callable[..., Ran], tmp_path: Path, how: list[str]) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file/runs"):
        ran = command("pretrain", *SMALL, f"out={place}", *how, small=False)
        assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
        assert f"out: {tmp_path / 'file'}" in ran.err
        assert "is, or lies below, a file" in ran.err
