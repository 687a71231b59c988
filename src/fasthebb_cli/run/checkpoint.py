"""An unfinished stage's state as one file: written whole or not at all, read without executing anything in it.

It ends in a checksum, which torch.load doesn't look for. The one before is kept beside it, and used when the newest is
damaged.
"""

import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import torch

from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.run.files import CHECKPOINT_FILE, write_atomically

CHECKPOINT_FORMAT = "fasthebb checkpoint 2"
PREVIOUS_FILE = "checkpoint.previous.pt"
KEYS = ("fingerprint", "epoch", "step", "seconds", "records", "network", "task", "random")
REMEDY = "delete it or use force=true to start the stage over"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `path`; what it was until now becomes PREVIOUS_FILE.

    Raises:
        RunError: the disk is full or the directory can't be written; the last checkpoints stay.
    """

    def write(file: IO[bytes]) -> None:
        hashing = _Hashing(file)
        try:
            torch.save({"format": CHECKPOINT_FORMAT} | state, hashing)  # type: ignore[arg-type]  it only writes
        except RuntimeError as error:  # torch's own words for a full disk say nothing of it
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


def load_checkpoint(directory: Path, fingerprint: str, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The unfinished stage's state, on the CPU; None if it has none yet. What killed writers left is removed.

    Args:
        warn: told when the newest checkpoint is damaged and the one before is used.

    Raises:
        InputError: every checkpoint is damaged, or one is not ours or of other settings.
    """
    for left in directory.glob(f".{CHECKPOINT_FILE}.*"):
        left.unlink()
    paths = _existing(directory)
    for path in paths:
        try:
            state = _read(path, fingerprint)
        except _Damaged as damage:
            if path == paths[-1]:
                raise InputError(f"checkpoint {paths[0]} is damaged ({damage}); {REMEDY}") from damage
            warn(f"checkpoint {path} is damaged ({damage}); going on from the one before")
        else:
            for newer in paths[: paths.index(path)]:
                newer.unlink()  # else it would take the good one's place at the next save
            return state
    return None


def remove_checkpoints(directory: Path) -> None:
    """What a finished stage does not need."""
    for path in _existing(directory):
        path.unlink()


class _Damaged(Exception):
    pass


class _Hashing:
    """A file to be written to by torch, which is hashed as it goes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = blake2b(digest_size=32)
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


def _read(path: Path, fingerprint: str) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = blake2b(digest_size=32)
        left = path.stat().st_size - digest.digest_size
        while left > 0:
            chunk = file.read(min(left, 1 << 20))
            digest.update(chunk)
            left -= len(chunk)
        if left < 0 or file.read() != digest.digest():
            raise _Damaged("its checksum is wrong")
        file.seek(0)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise _Damaged((str(error).splitlines() or [type(error).__name__])[0][:120]) from error
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise InputError(f"{path} is not a checkpoint of fasthebb ({CHECKPOINT_FORMAT}); {REMEDY}")
    if missing := [key for key in KEYS if key not in state]:
        raise InputError(f"checkpoint {path} is incomplete: it has no {missing[0]}; {REMEDY}")
    if state["fingerprint"] != fingerprint:
        raise InputError(f"checkpoint {path} belongs to other settings ({str(state['fingerprint'])[:8]}); {REMEDY}")
    return state
