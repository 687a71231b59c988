"""A search by Optuna over a validation metric: it finds what is better, and a failed cell does not end it."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from fasthebb_cli.cli import objective
from fasthebb_cli.cli.objective import objective_of
from fasthebb_cli.errors import InputError
from tests.conftest import Ran

SEARCH = ("train", "-m", "hydra/sweeper=optuna", "hydra.sweeper.sampler.seed=0", "hydra.sweeper.n_jobs=1")
ON_VALIDATION = ("objective=evaluate.top1", "evaluate.split=validation")
BEST = (*SEARCH, *ON_VALIDATION, "hydra.sweeper.direction=maximize")


def test_a_number_is_found_by_its_path() -> None:
    results = {"probe": {"layers": {"conv1": {"top1": 0.5}}}, "evaluate": {"top1": 1, "split": "validation"}}
    assert objective_of("probe.layers.conv1.top1", results) == 0.5
    assert objective_of("evaluate.top1", results) == 1.0
    with pytest.raises(InputError, match=r"no 'conv2' in probe.layers, which has: conv1"):
        objective_of("probe.layers.conv2.top1", results)
    with pytest.raises(InputError, match="no number"):
        objective_of("evaluate.split", results)


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
def test_a_search_ends_with_the_best_of_those_that_worked(command: Callable[..., Ran]) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    ran = command(*BEST, "hydra.sweeper.n_trials=4", "finetune.lr=choice(1e-9,0.05,1e9)")
    assert ran.code == 1, ran.err
    assert "failed" in ran.out
    assert "with finetune.lr=0.05" in ran.out
    best = yaml.safe_load((ran.runs / "optimization_results.yaml").read_text())
    assert best["best_params"] == {"finetune.lr": 0.05}, ran.out


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
def test_a_search_in_which_all_fails_ends_with_their_table(command: Callable[..., Ran]) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    ran = command(*BEST, "hydra.sweeper.n_trials=2", "finetune.lr=choice(1e9,1e10)")
    assert ran.code == 1
    assert ran.out.count("failed") == 3  # a row each, and their number
    assert "No trials" not in ran.err


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
def test_a_search_that_is_kept_in_a_file_goes_on(command: Callable[..., Ran], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    study = ["hydra.sweeper.study_name=one", f"hydra.sweeper.storage=sqlite:///{tmp_path / 'studies.db'}"]
    for trials in (2, 1):
        ran = command(*BEST, *study, f"hydra.sweeper.n_trials={trials}", "finetune.lr=choice(0.03,0.04,0.05)")
        assert ran.code == 0, ran.err
    with closing(sqlite3.connect(tmp_path / "studies.db")) as database:
        assert database.execute("select count(*) from trials").fetchone() == (3,)


def test_a_file_that_can_not_keep_a_search_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "version", {"sqlalchemy": "2.1.9", "optuna": "2.10.1"}.__getitem__)
    objective.check_storage(None)
    with pytest.raises(InputError, match=r"storage=sqlite:///x: optuna 2\.10\.1 keeps no study with"):
        objective.check_storage("sqlite:///x")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "hydra/sweeper: a search needs an objective, as in objective=evaluate.top1 evaluate.split=validation"),
        (
            ON_VALIDATION,
            "hydra.sweeper.direction=minimize looks for the worst evaluate.top1; it must be maximize",
        ),
        (
            ("objective=pretrain.loss", "hydra.sweeper.direction=maximize"),
            "hydra.sweeper.direction=maximize looks for the worst pretrain.loss; it must be minimize",
        ),
        (
            ("objective=pretrain.seconds", "hydra.sweeper.direction=maximize"),
            "hydra.sweeper.direction=maximize looks for the worst pretrain.seconds; it must be minimize",
        ),
    ],
)
def test_a_search_for_nothing_or_the_worst_is_refused(
    command: Callable[..., Ran], words: tuple[str, ...], message: str
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    ran = command(*SEARCH, *words, "finetune.lr=choice(0.1,0.2)")
    assert ran.code == 2
    assert ran.err == f"error: {message}\n"
    assert not list(ran.runs.glob("*-*"))


def test_a_search_without_trials_is_refused(command: Callable[..., Ran]) -> None:
    for trials in (0, -3):
        ran = command(*BEST, f"hydra.sweeper.n_trials={trials}", "finetune.lr=choice(1e9,1e10)")
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert f"hydra.sweeper.n_trials must be at least 1, not {trials}" in ran.err
