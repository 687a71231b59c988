"""One cell: composed configuration -> checked dataclasses -> stages -> rows for a table."""

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from fasthebb_cli.cli.imports import importing
from fasthebb_cli.cli.objective import check_objective, objective_of
from fasthebb_cli.compute.launch import launch
from fasthebb_cli.console.formats import make_console
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.settings.load import completed, load

if TYPE_CHECKING:
    from fasthebb_cli.run.plan import PlannedStage
    from fasthebb_cli.run.stage import Outcome

Row = dict[str, Any]
Paces = dict[tuple[object, ...], float]  # seconds that an image of a stage takes, by all that they depend on
# Keys of results.json
IN_ROW = ("stage", "rule", "seed", "top1", "top5", "labels_train", "labels_validation", "seconds")


def run_composed(
    cfg: DictConfig, heading: str | None = None, paces: Paces | None = None
) -> tuple[list[Row], float | None]:
    """Runs a cell, or with `dry_run` says what it would do.

    Args:
        heading: printed above a cell of a sweep, whose table comes at the end of the sweep; None: a single run.
        paces: of `preview_cell`; the cells of a sweep share them.

    Returns:
        A row for each stage, and the value of `objective`, if there is one.

    Raises:
        InputError, RunError, Interrupted: see `load` and `run_cell`.
    """
    config = load(cfg)
    check_objective(config)
    yaml = OmegaConf.to_yaml(completed(cfg), resolve=True)
    with importing():
        from fasthebb_cli.cli.dry_run import preview_cell  # torch is loaded here, after bad input has been found
        from fasthebb_cli.console.view import View
        from fasthebb_cli.run.cell import run_cell

    view = View(make_console())
    if heading is not None:
        view.note(heading, "bold")
    if config.dry_run:
        check_folder(config.out)
        return preview_cell(config, view, {} if paces is None else paces), None
    if launch().first:
        make_folder(config.out)
    outcomes = run_cell(config, yaml, view)
    if heading is None:
        view.outcomes([(outcome.stage, outcome.results, outcome.cached) for outcome in outcomes])
    value = None
    if config.objective is not None:
        value = objective_of(config.objective, {outcome.stage.name: outcome.results for outcome in outcomes})
    return [_row(outcome) for outcome in outcomes], value


def check_folder(path: str) -> None:
    """Whether the root of all runs can be made, for --dry-run, which makes nothing.

    Raises:
        InputError, RunError: as `make_folder`.
    """
    there = next(place for place in (Path(path).absolute(), *Path(path).absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise InputError(f"out: {there} is, or lies below, a file ({os.strerror(errno.ENOTDIR)}); give a folder")
    if not os.access(there, os.W_OK):
        raise RunError(f"out: can't use {there} ({os.strerror(errno.EACCES)}); choose another out=DIR")


def make_folder(path: str) -> None:
    """The root of all runs.

    Raises:
        InputError: it, or a folder that it is to be in, is a file.
        RunError: it can't be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"out: {error.filename} is, or lies below, a file ({error.strerror}); give a folder"
        ) from error
    except OSError as error:
        raise RunError(f"out: can't use {error.filename} ({error.strerror}); choose another out=DIR") from error


def _row(outcome: "Outcome") -> Row:
    row = {key: outcome.results[key] for key in IN_ROW} | told(outcome.stage)
    return row | {"cached": outcome.cached, "backward_passes": outcome.results.get("backward_passes")}


def told(stage: "PlannedStage") -> Row:
    """What a row says of its stage whether it has run or not."""
    settings = stage.settings
    how = settings.fine_tuning(vars(settings))
    return {
        "stage": stage.name, "measures": settings.measures, "fine_tuning": how.name if how else "",
        "directory": str(stage.directory),
    }  # fmt: skip
