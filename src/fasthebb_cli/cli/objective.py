"""The objective of a search: one number in the results of one stage, never from the test images."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import Config

EXAMPLE = "as in objective=evaluate.top1 evaluate.split=validation"


def check_objective(config: Config) -> None:
    """Validates the objective before anything runs.

    Raises:
        InputError: it names no stage of the cell, or a stage that measures on the test images.
    """
    if config.objective is None:
        return
    stage, dot, metric = config.objective.partition(".")
    if not dot or not metric or stage not in config.stages:
        raise InputError(f"objective={config.objective} must be STAGE.METRIC of {', '.join(config.stages)}, {EXAMPLE}")
    if reason := config.settings[stage].no_objective(stage, metric):
        raise InputError(f"objective={config.objective} {reason}")


def check_search(objective: str | None, direction: str, trials: object) -> None:
    """Validates a search before anything runs.

    Args:
        direction: minimize or maximize.
        trials: their number.

    Raises:
        InputError: it has no objective or no trial, or its direction leads to the worst value.
    """
    if isinstance(trials, int) and trials < 1:
        raise InputError(f"hydra.sweeper.n_trials must be at least 1, not {trials}")
    if objective is None:
        raise InputError(f"hydra/sweeper: a search needs an objective, {EXAMPLE}")
    wanted = "minimize" if objective.endswith(("loss", "seconds")) else "maximize"
    if direction != wanted:
        raise InputError(f"hydra.sweeper.direction={direction} looks for the worst {objective}; it must be {wanted}")


def check_storage(storage: object) -> None:
    """Validates `hydra.sweeper.storage`, a database in which a study is kept and gone on with.

    Raises:
        InputError: this optuna can't use the SQLAlchemy that is installed.
    """
    if isinstance(storage, str) and int(version("sqlalchemy").partition(".")[0]) > 1:
        raise InputError(
            f"hydra.sweeper.storage={storage}: optuna {version('optuna')} keeps no study with SQLAlchemy "
            f"{version('sqlalchemy')}; pip install 'sqlalchemy<2' 'alembic<1.14', or leave storage out"
        )


def objective_of(objective: str, results: Mapping[str, Any]) -> float:
    """The number at `stage.key.key` in the results.

    Args:
        results: stage -> its results.

    Raises:
        InputError: there is no such key, or its value is no number; the message names the keys that there are.
    """
    value: Any = results
    path = ""
    for key in objective.split("."):
        if not isinstance(value, Mapping) or key not in value:
            known = ", ".join(value) if isinstance(value, Mapping) else "nothing"
            raise InputError(f"objective={objective}: no {key!r} in {path or 'the results'}, which has: {known}")
        value, path = value[key], f"{path}.{key}".lstrip(".")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"objective={objective} is {value!r}, no number")
    return float(value)
