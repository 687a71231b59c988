"""One process per stage: advisory file locks that die with their process, on one machine or over NFS."""

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep

from fasthebb_cli.errors import InputError, RunError

POLL_SECONDS = 1.0


@contextmanager
def locked(directory: Path, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds the lock of a stage's directory (which need not exist).

    Args:
        on_wait: called once with the holder ("host, process 123") when the lock must be waited for; without it a
            held lock is an error.

    Raises:
        InputError: the lock is held elsewhere and `on_wait` is None.
    """
    path = _path(directory)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
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
            sleep(POLL_SECONDS)
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
        file = os.open(_path(directory), os.O_RDONLY)
    except OSError:
        return None
    try:
        if _try_lock(file, fcntl.LOCK_SH):
            return None
        return os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
    finally:
        os.close(file)


def _path(directory: Path) -> Path:
    return directory.parent / ".locks" / f"{directory.name}.lock"


def _try_lock(file: int, how: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.lockf(file, how | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
