"""What a stage that fails leaves behind: a message in the user's terms, in its directory too."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from fasthebb_cli.compute import processes
from fasthebb_cli.compute.processes import PeerFailed, PeerLost
from fasthebb_cli.errors import InputError, Interrupted, RunError
from fasthebb_cli.run.directory import ERROR_FILE, write_text
from fasthebb_cli.run.plan import PlannedStage


@contextmanager
def explained_failures(stage: PlannedStage, *, force: bool) -> Iterator[None]:
    """Errors of the body name the stage and what to do; error.txt keeps the message.

    Args:
        force: the user asked to start the stage over; doing so again would lose what an interrupted stage has saved.
    """
    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(f"{stopped} of {stage.name}" + (" (leave out force=true)" if force else "")) from None
    except PeerFailed:  # the process that failed says why
        raise
    except Exception as error:
        failure = error if isinstance(error, InputError | RunError) else _as_run_error(error, stage)
        if not isinstance(failure, PeerFailed):
            with suppress(RunError):  # as on a full disk
                write_text(stage.directory / ERROR_FILE, f"{failure or f'{type(error).__name__}: {error}'}\n")
        if failure is None or failure is error:
            raise
        raise failure from error


def _as_run_error(error: Exception, stage: PlannedStage) -> RunError | None:
    """What the machine refused, memory or disk, in the user's terms; None for any other fault."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        graph = ", or set gpu.graph=false" if isinstance(error, torch.OutOfMemoryError) else ""
        return RunError(f"{stage.name}: out of memory; lower {stage.kind}.batch_size or model.width{graph}")
    if processes.count() > 1 and "peer" in str(error):  # what gloo says of a broken connection
        return PeerLost(f"{stage.name}: another process of this run ended; see the messages before this")
    if isinstance(error, OSError):
        return RunError(f"{stage.name}: {error.strerror or error} ({error.filename or stage.directory})")
    return None
