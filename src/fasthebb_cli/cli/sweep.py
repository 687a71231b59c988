"""`-m`: Hydra's launcher runs the cells, each cell writes a small report, and a table of all reports ends the sweep.

The reports are files in the sweep's directory, because cells may run in other processes and on other machines.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.markup import escape

from fasthebb_cli.cli.cell import make_folder, run_composed
from fasthebb_cli.cli.compose import compose_sweep, composition_errors, searchpath, sweep_lines
from fasthebb_cli.cli.failures import fail_together
from fasthebb_cli.cli.hydra_main import call_hydra
from fasthebb_cli.cli.messages import explain_job, is_failed_search
from fasthebb_cli.cli.objective import check_search, check_storage
from fasthebb_cli.cli.sweep_summary import Cell
from fasthebb_cli.cli.sweep_table import print_cells, title
from fasthebb_cli.cli.words import Request
from fasthebb_cli.compute.launch import launch
from fasthebb_cli.compute.signals import STOPPED, end_cell, requeue
from fasthebb_cli.console.formats import make_console
from fasthebb_cli.run.directory import mark_start, write_text

SWEEP_VARIABLE = "FASTHEBB_SWEEP"  # the sweep's name, for the processes of its cells: they inherit the environment


def run_sweep(request: Request) -> int:
    """Runs the cells and returns the worst exit code.

    Raises:
        InputError: the words make no sweep.
        RunError: the launcher can't go on; what cells finished stays.
    """
    shared = compose_sweep(request)
    direction = shared.hydra.sweeper.get("direction")
    if direction is not None:  # the sweeper searches
        trials = shared.hydra.sweeper.get("n_trials")
        check_search(shared.objective, str(getattr(direction, "name", direction)), trials)
        check_storage(shared.hydra.sweeper.get("storage"))
    os.environ[SWEEP_VARIABLE] = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    mark_start()
    failure = None
    with _sweep_directory(str(shared.hydra.sweep.dir)) as directory:
        words = ["--multirun", *sweep_lines(request), *searchpath(request)]
        if not launch().first:
            words.append(f"hydra.sweep.dir={directory}")
        try:
            with composition_errors(request):
                stopped = call_hydra(cell_of_sweep, request.config, words)
        except Exception as error:  # noqa: BLE001  it is raised again below the table
            failure, stopped = error, 0
        code = _conclude(directory)
        if failure is not None and not is_failed_search(failure):
            raise explain_job(failure) from failure
        if direction is not None and failure is None and not stopped:
            _print_best(directory, str(shared.objective))
    return stopped or code


def cell_of_sweep(cfg: DictConfig) -> float | None:
    """Runs one cell in a process of the launcher's choice. It never raises: the error goes into the cell's report.

    Returns:
        The value of `objective`, for a sweeper that searches; None for a failed cell, which is a failed trial.
    """
    job = HydraConfig.get()
    overrides = list(job.overrides.task)
    report: Cell = {"number": job.job.num, "overrides": overrides, "code": 0, "error": "", "rows": []}
    value = None
    try:
        report["rows"], value = run_composed(cfg, heading=title(job.job.num, overrides))
    except Exception as problem:  # noqa: BLE001  the last resort: every failure of a cell becomes its report
        report["code"], report["error"] = fail_together(problem), str(problem) or type(problem).__name__
        if report["code"] == STOPPED:
            requeue()
            end_cell()  # after an Exception Hydra would start the next one
    if launch().first:
        write_text(_reports(job.sweep.dir) / f"{job.job.num:05d}.json", json.dumps(report) + "\n")
    return value


@contextmanager
def _sweep_directory(path: str) -> Iterator[str]:
    """The directory of the cells' reports and of Hydra's multirun.yaml. Only the first process keeps it.

    Raises:
        RunError: it can't be made.
    """
    if launch().first:
        make_folder(path)
        yield path
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield folder


def _reports(sweep: str) -> Path:
    return Path(sweep) / ".sweeps" / os.environ.get(SWEEP_VARIABLE, "unnamed")


def _conclude(sweep: str) -> int:
    """Prints the table of all reports, deletes them and returns the worst exit code."""
    files = sorted(_reports(sweep).glob("*.json"))
    cells: list[dict[str, Any]] = [json.loads(path.read_text()) for path in files]
    if cells:
        print_cells(make_console(), cells)
    for path in files:
        path.unlink()
    with suppress(OSError):  # it doesn't exist, or another cell has just written its report
        _reports(sweep).rmdir()
    return max((cell["code"] for cell in cells), default=0)


def _print_best(sweep: str, objective: str) -> None:
    """Prints the best trial of a search, which the sweeper has written to a file."""
    found = Path(sweep) / "optimization_results.yaml"
    if found.exists():
        best = yaml.safe_load(found.read_text())
        chosen = " ".join(f"{key}={value}" for key, value in best["best_params"].items())
        text = f"best {objective}: {best['best_value']:.4g} with {chosen}"
        make_console().print(escape(text), style="bold")
