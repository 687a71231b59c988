"""What a stage that fails leaves behind: a message in the user's terms, in its directory too."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from fasthebb.own import OwnError, is_own, place_in_own_code
from fasthebb_cli.compute import processes
from fasthebb_cli.compute.device import Compute
from fasthebb_cli.compute.graphs import replays
from fasthebb_cli.compute.processes import PeerFailed, PeerLost
from fasthebb_cli.errors import InputError, Interrupted, RunError
from fasthebb_cli.run.directory import ERROR_FILE, write_text
from fasthebb_cli.run.plan import PlannedStage
from fasthebb_cli.run.shared import Cell
from fasthebb_cli.settings.config import Config
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
        failure = explained(error, cell.config, cell.compute, stage)
        if not isinstance(failure, PeerFailed):
            with suppress(RunError):  # as on a full disk
                write_text(stage.directory / ERROR_FILE, f"{failure or f'{type(error).__name__}: {error}'}\n")
        if failure is None or failure is error:
            raise
        raise failure from error


def explained(error: Exception, config: Config, compute: Compute, stage: PlannedStage) -> Exception | None:
    """The error in the user's terms: what the machine refused, or where the user's own code fails; None: our fault."""
    if isinstance(error, InputError | RunError):
        return error
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return RunError(f"{stage.name}: out of memory; {_less_memory(config, compute, stage)}")
    if processes.count() > 1 and "peer" in str(error):  # what gloo says of a broken connection
        return PeerLost(f"{stage.name}: another process of this run ended; see the messages before this")
    if isinstance(error, OSError):
        return RunError(f"{stage.name}: {error.strerror or error} ({error.filename or stage.directory})")
    names = {"dataset.name": config.dataset.name, "model.name": config.model.name, "rule.name": config.rule.name}
    own = [f"{key}={name}" for key, name in names.items() if is_own(name)]
    if isinstance(error, OwnError):
        return RunError(f"{stage.name}: {error}")
    if own and (place := place_in_own_code(error)):
        return RunError(f"{stage.name}: {' or '.join(own)}: {place}: {type(error).__name__}: {error}")
    return None


def _less_memory(config: Config, compute: Compute, stage: PlannedStage) -> str:
    """Settings that lower the memory which the stage needs."""
    model, rule = config.model.name, config.rule.name
    group = stage.configured if stage.configured in STAGE_GROUPS else f"extra.{stage.configured}"
    fixed = rule in stage.settings.rules_without_settings
    keys = [] if fixed else [f"{group}.{key}" for key in stage.settings.memory_keys]
    keys.append("dataset.size" if ":" in model else "model.width")  # networks of other packages need not have a width
    graph = stage.settings.recorded and not fixed and replays(config.gpu, compute, model, rule)
    lower = " or ".join(filter(None, [", ".join(keys[:-1]), keys[-1]]))
    return f"lower {lower}" + (", or set gpu.graph=false" if graph else "")
