"""An unfinished stage's state as one file: written whole or not at all, read without executing anything in it."""

from pathlib import Path
from typing import Any

import torch

from fasthebb_cli.errors import InputError
from fasthebb_cli.run.files import write_atomically

CHECKPOINT_FORMAT = "fasthebb checkpoint 2"
KEYS = ("fingerprint", "epoch", "step", "seconds", "records", "network", "task", "random")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    write_atomically(path, lambda file: torch.save({"format": CHECKPOINT_FORMAT} | state, file))


def load_checkpoint(path: Path, fingerprint: str) -> dict[str, Any]:
    """The unfinished stage's state, on the CPU.

    Raises:
        InputError: the file is damaged, not a checkpoint of ours, or of other settings.
    """
    remedy = "delete it or use force=true to start the stage over"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"checkpoint {path} can't be read ({_first_line(error)}); {remedy}") from error
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise InputError(f"{path} is not a checkpoint of fasthebb ({CHECKPOINT_FORMAT}); {remedy}")
    if missing := [key for key in KEYS if key not in state]:
        raise InputError(f"checkpoint {path} is incomplete: it has no {missing[0]}; {remedy}")
    if state["fingerprint"] != fingerprint:
        raise InputError(f"checkpoint {path} belongs to other settings ({str(state['fingerprint'])[:8]}); {remedy}")
    return state


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
