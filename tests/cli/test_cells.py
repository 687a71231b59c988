"""`fasthebb cells`: a sweep's cells as commands, with the pre-training that each needs."""

import shlex
from collections.abc import Callable

import pytest

from tests.conftest import SMALL, Ran


@pytest.fixture
def lines(command: Callable[..., Ran]) -> Callable[..., list[list[str]]]:
    """[pre-training, command] of each cell."""

    def listed(*words: str) -> list[list[str]]:
        ran = command("cells train", *SMALL, *words, small=False)
        assert ran.code == 0, ran.err
        return [line.split("\t") for line in ran.out.splitlines()]

    return listed


@pytest.mark.slow
def test_cells_name_the_pre_training_that_is_not_done_yet(
    lines: Callable[..., list[list[str]]], command: Callable[..., Ran]
) -> None:
    sweep = ("rule=hpca,none", "label_fraction=0.1,0.2", "pretrain.epochs=1")
    needed = [pretraining for pretraining, _ in lines(*sweep)]
    assert needed[0] == needed[1]
    assert "hpca-seed0-pretrain-" in needed[0]
    assert needed[2:] == ["-", "-"]
    ran = command("pretrain", "pretrain.epochs=1")
    assert [str(path) for path in ran.directories("pretrain")] == needed[:1]
    assert [pretraining for pretraining, _ in lines(*sweep)] == ["-"] * 4


def test_a_cells_command_composes_the_cell(lines: Callable[..., list[list[str]]], command: Callable[..., Ran]) -> None:
    ((_, text),) = lines("stages=[pretrain,finetune]", "pretrain.layer_lr.fc5=0.1", "rule.options.x=a b")
    words = shlex.split(text)
    assert words[0] == "train"
    assert "stages=[pretrain,finetune]" in words
    composed = command(*words, "--cfg", "job", small=False)
    assert composed.code == 0, composed.err
    assert "fc5: 0.1" in composed.out
    assert "x: a b" in composed.out


def test_a_mistake_in_one_cell_is_an_error_of_the_whole(command: Callable[..., Ran]) -> None:
    ran = command("cells train", *SMALL, "label_fraction=0.1,2", small=False)
    assert ran.code == 2
    assert "label_fraction must be in (0, 1]" in ran.err
    ran = command("cells dance", small=False)
    assert ran.code == 2
    assert "the verb is one of train, pretrain" in ran.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["finetune.layer=conv9,conv1"], "finetune.layer=conv9"),
        (["finetune.by_rule=[conv9]"], "finetune.by_rule"),
        (["out=a,b"], "out can't be swept"),
        (["hydra/sweeper=optuna", "pretrain.lr=interval(0.01,0.3)"], "hydra/sweeper"),
    ],
)
def test_a_mistake_in_one_of_the_cells_is_found_now(
    command: Callable[..., Ran], words: list[str], expected: str
) -> None:
    ran = command("cells train", *SMALL, *words, small=False)
    assert ran.code == 2
    assert expected in ran.err
    assert ran.err.count("\n") == 1
