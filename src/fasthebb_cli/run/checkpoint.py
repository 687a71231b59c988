"""The state of an unfinished stage as one file, complete or absent. Reading it executes no code.

The file ends in a checksum, since torch.load finds no damage. The checkpoint before it is kept too, and is used when
the newest is damaged.
"""

import os
import warnings
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, cast

import torch

from fasthebb.typed import check
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.run.directory import CHECKPOINT_FILE, write_atomically

CHECKPOINT_FORMAT = "fasthebb checkpoint 5"
PREVIOUS_FILE = "checkpoint.previous.pt"
KEYS = ("fingerprint", "epoch", "step", "seconds", "records", "network", "task", "random")
POSITION = {"epoch": int, "step": int, "seconds": float, "records": list[dict[str, Any]]}
DIGEST_SIZE = 32
REMEDY = "delete it or use force=true to start the stage over"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `path` and renames the checkpoint that was there to PREVIOUS_FILE.

    Raises:
        RunError: the disk is full or the directory can't be written; the last checkpoints stay.
    """

    def write(file: IO[bytes]) -> None:
        hashing = _Hashing(file)
        try:
            torch.save({"format": CHECKPOINT_FORMAT} | state, cast(IO[bytes], hashing))
        except RuntimeError as error:  # torch's message does not say that the disk is full
            raise hashing.error or error from error
        file.write(hashing.digest.digest())
        file.flush()
        os.fsync(file.fileno())
        if path.exists():  # now that the new one is safe
            path.replace(path.with_name(PREVIOUS_FILE))

    try:
        write_atomically(path, write)
    except RunError as error:
        last = " (the last checkpoint is kept)" if _existing(path.parent) else ""
        raise RunError(f"{error}{last}") from error


def find_checkpoint(directory: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint without damage; None if there is none yet. Removes the files of killed writers.

    Args:
        warn: is called when the newest is damaged and the one before it is used.

    Raises:
        InputError: every checkpoint is damaged.
    """
    for left in directory.glob(f".{CHECKPOINT_FILE}.*"):
        left.unlink()
    paths = _existing(directory)
    whole = next((path for path in paths if _is_whole(path)), None)
    if whole is None:
        if paths:
            reason = "is damaged, or of an earlier version (its checksum is wrong)"
            raise InputError(f"checkpoint {paths[0]} {reason}; {REMEDY}")
        return None
    for path in paths[: paths.index(whole)]:
        warn(f"checkpoint {path} is damaged (its checksum is wrong); going on from the one before")
        path.unlink()  # else the next save would rename it over the good one
    return whole


def load_checkpoint(path: Path, fingerprint: str) -> dict[str, Any]:
    """The unfinished stage's state, on the CPU.

    Raises:
        InputError: the file is no checkpoint of this program, or belongs to other settings.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that another program made
            # mapped: of what all processes added up, each reads its own
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"checkpoint {path} can't be read ({reason}); {REMEDY}") from error
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise InputError(f"{path} is not a checkpoint of fasthebb ({CHECKPOINT_FORMAT}); {REMEDY}")
    if missing := [key for key in KEYS if key not in state]:
        raise InputError(f"checkpoint {path} is incomplete: it has no {missing[0]}; {REMEDY}")
    try:
        check("", state, POSITION)
        if not isinstance(state["random"], list) or not state["random"]:
            raise ValueError("it has no state of a random generator")
        if state["epoch"] < 0 or state["step"] < 0 or len(state["records"]) != state["epoch"]:
            raise ValueError(f"epoch {state['epoch']} and step {state['step']} after {len(state['records'])} records")
    except ValueError as error:
        raise InputError(f"checkpoint {path} is damaged ({error}); {REMEDY}") from error
    if state["fingerprint"] != fingerprint:
        raise InputError(f"checkpoint {path} belongs to other settings ({str(state['fingerprint'])[:8]}); {REMEDY}")
    return state


def remove_checkpoints(directory: Path) -> None:
    """A finished stage needs none."""
    for path in _existing(directory):
        path.unlink()


class _Hashing:
    """A file for torch.save that hashes what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = blake2b(digest_size=DIGEST_SIZE)
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _existing(directory: Path) -> list[Path]:
    """The checkpoints in a directory, the newest first."""
    return [path for name in (CHECKPOINT_FILE, PREVIOUS_FILE) if (path := directory / name).exists()]


def _is_whole(path: Path) -> bool:
    """Whether the file ends in the checksum of its content."""
    if not path.is_file():  # a pipe would never end
        return False
    digest = blake2b(digest_size=DIGEST_SIZE)
    left = path.stat().st_size - DIGEST_SIZE
    with path.open("rb") as file:
        while left > 0:
            chunk = file.read(min(left, 1 << 20))
            if not chunk:
                return False
            digest.update(chunk)
            left -= len(chunk)
        return left == 0 and file.read() == digest.digest()
