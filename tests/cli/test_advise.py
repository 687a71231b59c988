"""`fasthebb advise`: which way to learn pays, judged within the budget's labels and within a time limit."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fasthebb_cli import cli
from fasthebb_cli.data.dataset import load_dataset
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.conf import conf_directory
from fasthebb_cli.stages.images import labelled_images, left_out_images
from tests.conftest import Ran, loaded
from tests.lives import Life
from tests.lives import command as command_of

Command = Callable[..., Ran]
TINY = ("dataset=digits", "model.width=0.05", "gpu=cpu", "label_fraction=0.05")


def advise(capsys: pytest.CaptureFixture[str], out: Path, *words: str) -> Ran:
    code = cli.run(["advise", *TINY, f"out={out}", *words])
    captured = capsys.readouterr()
    return Ran(code, captured.out, captured.err, out)


@pytest.mark.slow
def test_ways_are_judged_and_the_commands_to_run_them_are_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("ways=random,scratch", "folds=2", "minutes=30")
    ran = advise(capsys, tmp_path, *words)
    assert ran.code == 0, ran.err
    rows = {line.split()[0]: line for line in ran.out.splitlines() if re.match(r"(random|scratch) +[0-9]", line)}
    assert "50 labels, leaving one out" in rows["random"]
    assert "50 labels, 2 folds" in rows["scratch"]
    tops = {name: float(line.split()[1]) for name, line in rows.items()}
    best = max(tops, key=lambda name: tops[name])
    assert f"Best: {best}" in ran.out
    command = f"fasthebb train {' '.join(TINY)} out={tmp_path} rule=random"
    assert command in ran.out
    assert "new directory" not in ran.out, "how stages differ is of no use here"
    assert not ran.directories("evaluate")[0].name.startswith("digits-conv6-w0.05-random"), (
        "no other image is looked at"
    )
    again = advise(capsys, tmp_path, *words)
    assert again.out.count("finished before") == 3 + 2 * 2
    assert cli.run(["train", *TINY, f"out={tmp_path}", "rule=random"]) == 0, "its command can be run"
    assert capsys.readouterr().out.count("finished before") == 3, "and goes on from what was done"


@pytest.mark.slow
def test_a_key_of_the_user_replaces_that_of_a_way_and_the_command_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("model=triangle", "++pretrain.epochs=1", "dataset.size=8")
    ran = advise(capsys, tmp_path, *words, "ways=softhebb,hpca", "minutes=30")
    assert ran.code == 0, ran.err
    commands = [shlex.split(line) for line in ran.out.splitlines() if line.startswith("  fasthebb train ")]
    assert len(commands) == 2
    for _, *command in commands:
        assert len({word.partition("=")[0].lstrip("+") for word in command}) == len(command)
        assert set(words) <= set(command)
        assert cli.run(command) == 0
        assert capsys.readouterr().out.count("finished before") == 3


@pytest.mark.slow
def test_every_way_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("dataset.size=24", "dataset.train_samples=200", "label_fraction=0.2", "pretrain.epochs=1", "folds=2")
    ran = advise(capsys, tmp_path, *words, "minutes=60")
    assert ran.code == 0, ran.err
    conf = OmegaConf.load(conf_directory() / "advise.yaml")
    for way in conf.choices:
        assert re.search(rf"^{way} +[0-9]+\.[0-9] +±", ran.out, re.MULTILINE), f"{way}: {ran.out}"


@pytest.mark.slow
def test_what_is_not_finished_in_time_goes_on_with_the_same_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("ways=hpca,random", "pretrain.epochs=100000")
    ran = advise(capsys, tmp_path, *words, "minutes=0.05")
    assert ran.code == 1
    assert "not finished in time" in ran.out
    assert "no time left" in ran.out
    assert "no way was judged" in ran.err
    assert ran.directories("pretrain")[0].joinpath("checkpoint.pt").exists()
    again = advise(capsys, tmp_path, *words, "minutes=0.05")
    assert "pretrain: resumed at epoch" in again.out


@pytest.mark.slow
def test_a_way_that_fails_is_a_row(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ran = advise(capsys, tmp_path, "ways=scratch,random", "finetune.components=20", "minutes=30")
    assert ran.code == 0, ran.err
    assert re.search(r"scratch +unknown key finetune\.components", ran.out)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["minutes=soon"], "minutes must be a number from 0.01 on, not 'soon'"),
        (["folds=1"], "folds must be a number from 2 on"),
        (["ways=magic"], "ways: unknown 'magic'; choose from: random, hpca"),
        (["rule=hpca"], "rule: fasthebb advise sets it itself"),
        (["-m"], "unknown flag -m"),
        (["nonsense=1"], "unknown key nonsense"),
        (["seed=0,1"], "seed: several values need -m"),
        (["dataset=image_folder", "dataset.root=/nowhere"], "dataset.root: there is no folder /nowhere"),
        (["dry_run=true"], "dry_run: fasthebb advise sets it itself"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], expected: str) -> None:
    ran = advise(capsys, tmp_path, *words)
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 1
    assert expected in ran.err


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_several_processes_are_refused_at_once(tmp_path: Path) -> None:
    life = Life(command_of(["advise", *TINY, f"out={tmp_path}"]), tmp_path / "log", size=2)
    assert life.wait() == 1
    assert "fasthebb advise runs in one process" in life.text()


def test_folds_are_parts_of_the_budget_with_equal_shares_of_each_class() -> None:
    config = loaded("dataset=digits", "label_fraction=0.1")
    dataset = load_dataset(config.dataset, 0)
    budget = labelled_images(dataset, config)
    parts = []
    for fold in range(1, 6):
        config = loaded("dataset=digits", "label_fraction=0.1", f"leave_out={fold}/5")
        learnt, left_out = labelled_images(dataset, config), left_out_images(dataset, config)
        assert sorted([*learnt.tolist(), *left_out.tolist()]) == sorted(budget.tolist())
        counts = dataset.labels[left_out].bincount(minlength=10)
        assert int(counts.max()) - int(counts.min()) <= 1
        parts.append(left_out)
    assert sorted(torch.cat(parts).tolist()) == sorted(budget.tolist())


@pytest.mark.parametrize("text", ["0/5", "6/5", "1/1", "half", "1/5/2"])
def test_a_fold_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="leave_out must be a fold and the number of folds, 2 to 9999, as in 1/5"):
        loaded("dataset=digits", f"leave_out={text}")


@pytest.mark.slow
def test_a_fold_has_a_directory_of_its_own_and_needs_leave_out(command: Command) -> None:
    words = ("stages=[finetune,evaluate]", "rule=none", "label_fraction=0.1", "finetune.epochs=1")
    assert command("train", *words).code == 0
    assert command("train", *words, "leave_out=1/5", "evaluate=left_out").code == 0
    whole, fold = sorted(
        (path for path in command("train", *words).directories("finetune")), key=lambda path: path.stat().st_mtime
    )
    assert whole.name != fold.name
    ran = command("train", *words, "evaluate=left_out")
    assert ran.code == 2
    assert "set it, as in leave_out=1/5" in ran.err
