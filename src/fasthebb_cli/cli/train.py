"""`fasthebb train` and the other verbs that run stages; they differ in the stages that they run by default."""

import io
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout

from fasthebb_cli.cli.cell import Paces, run_composed
from fasthebb_cli.cli.compose import compose_cells, compose_one, composition_errors, searchpath
from fasthebb_cli.cli.failures import fail_together
from fasthebb_cli.cli.hydra_main import call_hydra
from fasthebb_cli.cli.sweep import cell_of_sweep, run_sweep
from fasthebb_cli.cli.sweep_summary import Cell
from fasthebb_cli.cli.sweep_table import print_cells, title
from fasthebb_cli.cli.words import Request, read_words
from fasthebb_cli.compute.signals import STOPPED, requeue
from fasthebb_cli.console.formats import LOST, make_console, write_out
from fasthebb_cli.errors import InputError
from fasthebb_cli.run.directory import mark_start


def train(verb: str, words: Sequence[str]) -> int:
    """Runs one cell or a sweep of them, or with --dry-run says what they would do, and returns the exit code.

    Raises:
        InputError: the words make no configuration. What fails in a cell is reported here.
    """
    request = read_words("config", f"verb={verb}", words)
    if request.show:
        return show(request)
    if not request.is_sweep:
        return _run_one(request)
    return _preview_sweep(request) if request.is_dry_run else run_sweep(request)


def show(request: Request) -> int:
    """--cfg and --info, by Hydra.

    Raises:
        InputError: Hydra refuses them.
    """
    with composition_errors(request):
        shown, said = io.StringIO(), io.StringIO()
        with redirect_stdout(shown), redirect_stderr(said):
            code = call_hydra(cell_of_sweep, request.config, [*request.show, *request.lines, *searchpath(request)])
    if code:  # nothing runs, so what Hydra refuses is bad input, as an unknown --package
        raise InputError(said.getvalue().strip() or f"Hydra ended with {code}")
    write_out(shown.getvalue())
    return min(len(LOST), 1)


def _run_one(request: Request) -> int:
    cfg = compose_one(request)
    mark_start()
    try:
        run_composed(cfg)
    except Exception as problem:  # noqa: BLE001  the processes of a run fail together, see fail_together
        code = fail_together(problem)
        if code == STOPPED:
            requeue()
        return code
    return 0


def _preview_sweep(request: Request) -> int:
    """What each cell would do, here and one after the other, whatever launcher the sweep has."""
    cells: list[Cell] = []
    worst = 0
    paces: Paces = {}
    for number, (overrides, cfg) in enumerate(compose_cells(request, "--dry-run")):
        cell: Cell = {"overrides": overrides, "code": 0, "error": "", "rows": []}
        try:
            cell["rows"], _ = run_composed(cfg, title(number, overrides), paces)
        except Exception as problem:  # noqa: BLE001  every failure of a cell becomes its row
            cell["code"], cell["error"] = fail_together(problem), str(problem) or type(problem).__name__
        cells.append(cell)
        worst = max(worst, cell["code"])
    print_cells(make_console(), cells)
    return worst
