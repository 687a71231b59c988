"""Files that are whole or not there: everything is written beside its place, synced and renamed into it."""

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fasthebb import stage_files
from fasthebb_cli.errors import RunError, bad_input

# What a stage's directory holds: the last to be written is RESULTS_FILE, which says that the stage is finished
RESULTS_FILE = stage_files.RESULTS_FILE
MODEL_FILE = stage_files.MODEL_FILE
FINGERPRINT_FILE = stage_files.FINGERPRINT_FILE
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
FILTERS_FILE = "filters.png"
CHECKPOINT_FILE = "checkpoint.pt"
ERROR_FILE = "error.txt"


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file, synced and renamed to `path` at the end: a reader sees the old file or the new one.

    Raises:
        RunError: the disk is full, or at the start the directory can't be written or the path is no file's. What was
            there stays.
    """
    temporary = None
    try:
        _check_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Runs `write` on a file that replaces `path`.

    Raises:
        RunError: as `replacing`.
    """
    try:
        with replacing(path) as file:
            write(file)
    except RuntimeError as error:  # as torch.save reports a full disk
        raise RunError(f"can't write {path}: {str(error).splitlines()[0]}") from error


def _check_file(path: Path) -> None:
    """A folder, a device or a pipe is not to be replaced by a file."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is there and not a file")


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """As `stage_files.read_json`; raises InputError."""
    with bad_input():
        return stage_files.read_json(path)
