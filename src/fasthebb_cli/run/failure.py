"""What a stage that fails leaves behind: a message in the user's terms, in its directory too."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from fasthebb_cli.compute import processes
from fasthebb_cli.compute.graphs import replays
from fasthebb_cli.compute.processes import PeerFailed, PeerLost
from fasthebb_cli.errors import InputError, Interrupted, RunError
from fasthebb_cli.run.directory import ERROR_FILE, write_text
from fasthebb_cli.run.plan import PlannedStage
from fasthebb_cli.run.shared import Cell
from fasthebb_cli.settings.stages import STAGE_GROUPS


@contextmanager
def explained_failures(cell: Cell, stage: PlannedStage) -> Iterator[None]:
    """Errors of the body name the stage and what to do; error.txt keeps the message."""
    try:
        yield
    except Interrupted as stopped:
        again = " (leave out force=true)" if cell.config.force else ""  # it would delete what the stage has saved
        raise Interrupted(f"{stopped} of {stage.name}{again}") from None
    except PeerFailed:  # the process that failed says why
        raise
    except Exception as error:
        failure = error if isinstance(error, InputError | RunError) else _as_run_error(error, cell, stage)
        if not isinstance(failure, PeerFailed):
            with suppress(RunError):  # as on a full disk
                write_text(stage.directory / ERROR_FILE, f"{failure or f'{type(error).__name__}: {error}'}\n")
        if failure is None or failure is error:
            raise
        raise failure from error


def _as_run_error(error: Exception, cell: Cell, stage: PlannedStage) -> RunError | None:
    """What the machine refused, memory or disk, in the user's terms; None for any other fault."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return RunError(f"{stage.name}: out of memory; {_less_memory(cell, stage)}")
    if processes.count() > 1 and "peer" in str(error):  # what gloo says of a broken connection
        return PeerLost(f"{stage.name}: another process of this run ended; see the messages before this")
    if isinstance(error, OSError):
        return RunError(f"{stage.name}: {error.strerror or error} ({error.filename or stage.directory})")
    return None


def _less_memory(cell: Cell, stage: PlannedStage) -> str:
    """Settings that lower the memory which the stage needs."""
    model, rule = cell.config.model.name, cell.config.rule.name
    group = stage.configured if stage.configured in STAGE_GROUPS else f"extra.{stage.configured}"
    fixed = rule in stage.settings.rules_without_settings
    keys = [] if fixed else [f"{group}.{key}" for key in stage.settings.memory_keys]
    keys.append("dataset.size" if ":" in model else "model.width")  # networks of other packages need not have a width
    graph = stage.settings.recorded and not fixed and replays(cell.config.gpu, cell.compute, model, rule)
    lower = " or ".join(filter(None, [", ".join(keys[:-1]), keys[-1]]))
    return f"lower {lower}" + (", or set gpu.graph=false" if graph else "")
