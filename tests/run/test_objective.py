"""A search by Optuna over a validation metric: it finds what is better, and a failed cell does not end it."""

from collections.abc import Callable

import pytest
import yaml

from fasthebb_cli.errors import InputError
from fasthebb_cli.run.objective import objective_of
from tests.conftest import Ran


def test_a_number_is_found_by_its_path() -> None:
    results = {"probe": {"layers": {"conv1": {"top1": 0.5}}}, "evaluate": {"top1": 1, "split": "validation"}}
    assert objective_of("probe.layers.conv1.top1", results) == 0.5
    assert objective_of("evaluate.top1", results) == 1.0
    with pytest.raises(InputError, match=r"no 'conv2' in probe.layers, which has: conv1"):
        objective_of("probe.layers.conv2.top1", results)
    with pytest.raises(InputError, match="no number"):
        objective_of("evaluate.split", results)


@pytest.mark.filterwarnings("default")
def test_a_search_ends_with_the_best_of_those_that_worked(command: Callable[..., Ran]) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    sweeper = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=1")
    words = ("hydra.sweeper.direction=maximize", "objective=evaluate.top1", "evaluate.split=validation")
    ran = command("train", "-m", *sweeper, *words, "hydra.sweeper.sampler.seed=0", "finetune.lr=choice(1e-9,0.05,1e9)")
    assert ran.code == 1, ran.err
    assert "failed" in ran.out
    assert "with finetune.lr=0.05" in ran.out
    best = yaml.safe_load((ran.runs / "optimization_results.yaml").read_text())
    assert best["best_params"] == {"finetune.lr": 0.05}, ran.out
