"""What is in image files, as a digest for each. Every file is read once; after that its length and time of change tell.

The digests are kept in FASTHEBB_CACHE or ~/.cache/fasthebb, one file for each place that images come from. Without it,
or if it is damaged, all files are read again. A set that is moved or touched has the same digests as before.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from hashlib import blake2b
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import torch

from fasthebb_cli.compute import processes
from fasthebb_cli.data.files import FileList, ImageFile
from fasthebb_cli.errors import RunError

WIDTH = 16  # bytes of a digest
UNREAD = bytes(WIDTH)  # of a file that can't be read; it fails later, when it is decoded
CHUNK = 64  # files that a reading thread takes at a time
WINDOW = 1024 * CHUNK  # files that are handed to all threads at a time
TOLD = 20_000  # files: reading so many takes long enough to say so
Digests = np.ndarray[Any, np.dtype[np.uint8]]  # (N, WIDTH)

_tell: ContextVar[Callable[[str], None]] = ContextVar("tell", default=lambda _: None)


@contextmanager
def telling(note: Callable[[str], None]) -> Iterator[None]:
    """Within, `note` gets a line before many files are read."""
    token = _tell.set(note)
    try:
        yield
    finally:
        _tell.reset(token)


def tell(text: str) -> None:
    """Gives a line to whom `telling` has named; to nobody, outside of it."""
    _tell.get()(text)


def content_digests(files: FileList, place: str, read: Callable[[str], bytes]) -> Digests:
    """The digest of every file's content, (N, WIDTH). All processes call this; the first one reads.

    Args:
        place: where the files come from: it names the file of the cache.
        read: path -> content.
    """
    return processes.from_first(lambda: _content_digests(files, cache_file("contents", place), read))


def _content_digests(files: FileList, cache: Path, read: Callable[[str], bytes]) -> Digests:
    whole = files.state()
    kept = _kept(cache)
    if kept is not None and kept[0] == whole and kept[2].any(1).all():
        return kept[2]  # nothing has changed, so no file's key is needed
    keys = np.fromiter(map(_key, files), "<u8", len(files))
    digests = np.zeros((len(files), WIDTH), np.uint8)
    unread = np.ones(len(files), bool)
    if kept is not None and len(kept[1]):
        order = np.argsort(kept[1])
        place = order[np.searchsorted(kept[1], keys, sorter=order).clip(max=len(order) - 1)]
        unread = kept[1][place] != keys
        digests[~unread] = kept[2][place[~unread]]
        unread |= ~digests.any(1)  # what could not be read may be readable now
    numbers = np.flatnonzero(unread)
    if len(numbers) >= TOLD:
        tell(f"reads {len(numbers):,} images once, to know them by their content")

    def fill(start: int) -> None:
        for i in numbers[start : start + CHUNK]:
            digests[i] = np.frombuffer(_digest(files[int(i)], read), np.uint8)

    with ThreadPoolExecutor(max(1, min(8, 2 * torch.get_num_threads()))) as pool:
        for some in range(0, len(numbers), WINDOW):  # what waits takes memory, too
            for _ in pool.map(fill, range(some, min(some + WINDOW, len(numbers)), CHUNK)):
                pass
    pieces, hashed = (whole, keys.data, digests.data), blake2b(digest_size=WIDTH)
    for piece in pieces:
        hashed.update(piece)
    keep(cache, *pieces, hashed.digest())
    return digests


def _key(file: ImageFile) -> int:
    named = os.fsencode(f"{file.name}\0{file.length}\0{file.changed}")
    return int.from_bytes(blake2b(named, digest_size=8).digest(), "little")


def _digest(file: ImageFile, read: Callable[[str], bytes]) -> bytes:
    if not file.changed:
        return UNREAD
    try:
        return blake2b(read(file.path), digest_size=WIDTH).digest()
    except Exception:  # noqa: BLE001  whatever it is, decoding names the file
        return UNREAD


class Unchanged:
    """Checks that files are still what they were when they were listed. A file that was only touched is.

    Args:
        digests: of what was in each, (N, WIDTH).
    """

    def __init__(self, files: FileList, digests: Digests) -> None:
        self.files, self.digests = files, digests

    def check(self, index: int) -> None:
        """Raises:
        RunError: this file has other content now.
        """
        file = self.files[index]
        found = os.stat(file.path)
        if (found.st_size, found.st_ctime_ns) == (file.length, file.changed):
            return
        if blake2b(Path(file.path).read_bytes(), digest_size=WIDTH).digest() != self.digests[index].tobytes():
            raise RunError(f"{file.path}: was changed while the run reads it; a new start takes the images as they are")


def cache_file(kind: str, place: str) -> Path:
    """Where what is known of a place is kept: in FASTHEBB_CACHE, XDG_CACHE_HOME/fasthebb or ~/.cache/fasthebb."""
    folder = os.environ.get("FASTHEBB_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "fasthebb"
    )
    return Path(folder) / f"{kind}-{blake2b(os.fsencode(place), digest_size=12).hexdigest()}"


def _kept(cache: Path) -> tuple[bytes, np.ndarray[Any, np.dtype[np.uint64]], Digests] | None:
    """The state of all files, each one's key, and its digest; None: nothing is kept, or it is damaged."""
    try:
        content = cache.read_bytes()
    except OSError:
        return None
    body, check = memoryview(content)[:-WIDTH], content[-WIDTH:]
    if blake2b(body, digest_size=WIDTH).digest() != check or (len(body) - WIDTH) % (8 + WIDTH):
        return None
    count = (len(body) - WIDTH) // (8 + WIDTH)
    keys = np.frombuffer(body, "<u8", count, WIDTH)
    digests = np.frombuffer(body, np.uint8, offset=WIDTH + 8 * count).reshape(count, WIDTH)
    return bytes(body[:WIDTH]), keys, digests.copy()  # alone they take less memory


def keep(cache: Path, *pieces: bytes | memoryview) -> None:
    """Writes a file of the cache. Where that fails nothing is kept, and files are read again."""
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=cache.parent, delete=False) as file:
            try:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.replace(file.name, cache)
            except OSError:
                os.unlink(file.name)
                raise
