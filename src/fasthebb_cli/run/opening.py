"""Opens a stage's directory: gives the results of a finished stage, or makes the directory ready for the stage to run.

The first process alone does this.
"""

import shutil
from pathlib import Path
from typing import Any

from fasthebb.stage_files import check_seal
from fasthebb_cli.errors import InputError
from fasthebb_cli.run.directory import (
    CONFIG_FILE,
    ERROR_FILE,
    FINGERPRINT_FILE,
    RESULTS_FILE,
    is_older,
    mark_begun,
    read_json,
    remove_begun,
    write_json,
    write_text,
)
from fasthebb_cli.run.plan import PlannedStage
from fasthebb_cli.run.shared import Cell
from fasthebb_cli.settings.fingerprint import fingerprint_of, with_later_keys

Difference = dict[str, tuple[Any, Any]]  # key -> value there, value here


def open_directory(cell: Cell, stage: PlannedStage) -> dict[str, Any] | None:
    """The results of a stage that is finished; None if it is not, and then its directory is ready.

    Raises:
        InputError: the results are of other settings, or damaged.
    """
    directory = stage.directory
    if cell.config.force and directory.exists() and is_older(directory):
        shutil.rmtree(directory)
    if not stage.finished:
        _make_ready(cell, stage)
        return None
    results = read_json(directory / RESULTS_FILE)
    try:
        check_seal(results)
        if results.get("fingerprint") != stage.fingerprint:
            raise ValueError("it is of other settings or damaged")
    except ValueError as error:
        raise InputError(f"{directory / RESULTS_FILE}: {error}; delete {directory} to redo it") from error
    _check_content(stage)
    return results


def _check_content(stage: PlannedStage) -> None:
    """Raises:
    InputError: fingerprint.json is not that of the stage.
    """
    path = stage.directory / FINGERPRINT_FILE
    content = read_json(path)
    if content.get("kind") != stage.kind or fingerprint_of(content) != stage.fingerprint:
        raise InputError(f"{path} is of other settings or damaged; delete {stage.directory} to redo the stage")


def _make_ready(cell: Cell, stage: PlannedStage) -> None:
    """Writes what describes the stage. Of a new directory the user is told how it differs from the nearest there is."""
    directory = stage.directory
    (directory / ERROR_FILE).unlink(missing_ok=True)  # of an earlier start
    remove_begun(directory)
    if not (directory / FINGERPRINT_FILE).exists():
        nearest = nearest_difference(stage)
        if nearest is not None:
            cell.view.differs(stage, *nearest)
        write_text(directory / CONFIG_FILE, cell.yaml)
        mark_begun(directory)
        write_json(directory / FINGERPRINT_FILE, stage.content)
    else:
        _check_content(stage)


def nearest_difference(stage: PlannedStage) -> tuple[Path, Difference] | None:
    """The directory of the same kind and data set whose settings differ in the fewest keys, and those."""
    nearest: tuple[Path, Difference] | None = None
    for path in sorted(stage.directory.parent.glob(f"*/{FINGERPRINT_FILE}")):
        try:
            content = read_json(path)
        except InputError:
            continue
        if path.parent == stage.directory or not isinstance(content.get("kind"), str):
            continue
        here = stage.content
        there = {key: value for key, value in with_later_keys(content).items() if key in content or key in here}
        if any(there.get(key) != here.get(key) for key in ("kind", "dataset.name")):
            continue
        keys = [key for key in (*here, *there) if key != "previous" and there.get(key) != here.get(key)]
        if nearest is None or len(set(keys)) < len(nearest[1]):
            nearest = (path.parent, {key: (there.get(key), here.get(key)) for key in keys})
    return nearest
