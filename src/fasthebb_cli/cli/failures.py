"""An error becomes one line on the terminal and an exit code; the other processes of the run are told."""

import os
import sys
import traceback

from rich.markup import escape

from fasthebb_cli.compute.launch import launch
from fasthebb_cli.compute.signals import STOPPED
from fasthebb_cli.console.formats import harmless, make_console, printable
from fasthebb_cli.errors import InputError, Interrupted, RunError

LONGEST = 4000  # characters of a message: it may quote what it was given
TRACEBACK_VARIABLE = "FASTHEBB_TRACEBACK"


def fail(error: Exception) -> int:
    """Prints the error on one line and returns the exit code.

    A traceback comes first if the user asked for it, or if the fault is ours.
    """
    console = make_console(stderr=True)
    if isinstance(error, Interrupted):
        console.print(
            f"stopped and saved at {error}; the same command goes on from there", style="yellow", soft_wrap=True
        )
        return STOPPED
    if os.environ.get(TRACEBACK_VARIABLE) or not _is_known(error):
        sys.stderr.write(harmless("".join(traceback.format_exception(error))))
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
    who = "" if launch().first else f"process {launch().rank}: "
    console.print(f"[bold red]error:[/] {who}{escape(printable(text))}", highlight=False, soft_wrap=True)
    return code_of(error)


def code_of(error: Exception) -> int:
    """2 for bad input, 1 for every other error."""
    return 2 if _is_known(error) and not isinstance(error, RunError) else 1


def _is_known(error: Exception) -> bool:
    """Whether its message tells the user what went wrong; every other error is a fault of ours."""
    return isinstance(error, InputError | RunError)


def fail_together(error: Exception) -> int:
    """Like `fail`, for a run of several processes.

    If all of them fail, the first one prints the error. If one fails alone, it prints its error and ends the others.
    """
    if launch().size == 1:
        return fail(error)
    from fasthebb_cli.compute.processes import PeerFailed, PeerLost, tell_failure

    if isinstance(error, Interrupted):
        return fail(error) if launch().first else STOPPED
    try:
        if isinstance(error, PeerLost):
            raise error
        return fail(error) if not isinstance(error, PeerFailed) and tell_failure() else code_of(error)
    except PeerLost:
        code = fail(error)
        sys.stderr.flush()
        os._exit(code)  # not even exit handlers: they would wait for the others
