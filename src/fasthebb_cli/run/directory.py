"""A stage's directory: the names of its files, how they are written, and its lock.

A file is either complete or absent: it is written under another name, synced and renamed. One process at a time works
on a stage and holds an advisory file lock, which ends with the process, on one machine or over NFS.
"""

import errno
import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from fasthebb import stage_files
from fasthebb.stage_files import read_bytes
from fasthebb_cli.errors import InputError, RunError, bad_input

# The files of a stage's directory. RESULTS_FILE is written last: a stage that has it is finished.
RESULTS_FILE = stage_files.RESULTS_FILE
MODEL_FILE = stage_files.MODEL_FILE
FINGERPRINT_FILE = stage_files.FINGERPRINT_FILE
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
FILTERS_FILE = "filters.png"
CHECKPOINT_FILE = "checkpoint.pt"
BEGUN = ".fasthebb"  # how the name of a file ends that is not whole yet; it begins with a dot
ERROR_FILE = "error.txt"

STARTED_FILE = "command.txt"  # the name of the command that began the stage
# The name of this command; the processes that it starts inherit the environment
START_VARIABLE = "FASTHEBB_STARTED"
UNLOCKED_VARIABLE = "FASTHEBB_UNLOCKED"  # 1: go on where the file system has no locks
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
POLL_SECONDS = 1.0  # between two looks at a lock that is held


def mark_start() -> None:
    """Gives the command a name, which no other command has."""
    os.environ[START_VARIABLE] = uuid4().hex


def mark_begun(directory: Path) -> None:
    """Notes in a stage's new directory which command began it."""
    write_text(directory / STARTED_FILE, os.environ.get(START_VARIABLE, ""))


def is_older(directory: Path) -> bool:
    """Whether another command than this one began the stage. `force=true` removes such a directory.

    Cells of a sweep share stages. The first cell starts the stage over, and then it is this command's own. Times of
    files tell nothing here: clocks of machines differ.
    """
    try:
        return read_bytes(directory / STARTED_FILE).decode() != os.environ.get(START_VARIABLE)
    except (OSError, ValueError):
        return True


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
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=BEGUN, delete=False) as file:
            temporary = Path(file.name)
            with suppress(OSError):  # some file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    """What the user's files are not to allow others."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def remove_begun(directory: Path) -> None:
    """Deletes what `replacing` had begun in a directory when its process was killed. Each writer locks its file."""
    for path in directory.glob(f".*{BEGUN}") if os.path.isdir(directory) else ():
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)


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
    """A file must not replace a folder, a device or a pipe."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is there and not a file")


def write_text(path: Path, text: str) -> None:
    """In UTF-8; bytes of a file's name that are none are written out."""
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """As `stage_files.read_json`; raises InputError."""
    with bad_input():
        return stage_files.read_json(path)


@contextmanager
def locked(directory: Path, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds the lock of a stage's directory (which need not exist).

    Args:
        on_wait: called once with the holder ("host, process 123") when the lock must be waited for; without it a
            held lock is an error.

    Raises:
        InputError: the lock is held elsewhere and `on_wait` is None.
    """
    path = _lock_path(directory)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)  # the umask decides
    except OSError as error:
        raise RunError(f"can't write below {directory.parent} ({error.strerror}); use another out=DIR") from error
    try:
        waiting = False
        while not _try_lock(file):
            holder = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
            if on_wait is None:
                raise InputError(f"{directory} is being worked on by {holder}; wait for it or stop it")
            if not waiting:
                on_wait(holder)
                waiting = True
            time.sleep(POLL_SECONDS)
        os.ftruncate(file, 0)
        os.pwrite(file, f"{socket.gethostname()}, process {os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(file)


def holder_of(directory: Path) -> str | None:
    """Who works on a stage's directory now ("host, process 123"), None if nobody does.

    It asks by taking a shared lock for a moment, which a file that can only be read allows too.
    """
    try:
        file = os.open(_lock_path(directory), os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if _try_lock(file, fcntl.LOCK_SH):
            return None
        return os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
    finally:
        os.close(file)


def _lock_path(directory: Path) -> Path:
    return directory.parent / ".locks" / f"{directory.name}.lock"


def _try_lock(file: int, how: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.lockf(file, how | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        if os.environ.get(UNLOCKED_VARIABLE) != "1":
            raise RunError(
                f"this file system has no locks ({error.strerror}): two commands could work on one stage at once; use "
                f"another out=DIR, or set {UNLOCKED_VARIABLE}=1 if no two ever do"
            ) from error
    return True
