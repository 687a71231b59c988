"""Unpacks a tar or zip file, and never writes outside of the target folder.

All members are checked before the first one is written. A file is written whole or not at all. A file that is there
with the right size is kept, so the same command resumes after a kill.
"""

import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from typing import IO, NamedTuple

from fasthebb_cli.console.formats import size
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.run.directory import remove_begun, replacing

DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError, NotImplementedError
)  # fmt: skip


class Member(NamedTuple):
    """A file inside an archive; `problem`: why it may not be unpacked, or None."""

    name: str
    length: int
    open: Callable[[], IO[bytes]]
    problem: str | None


def unpack(archive: Path, folder: Path, advance: Callable[[int], None]) -> int:
    """Unpacks all files of an archive below a folder.

    Args:
        advance: called after each file with the number of files since the last call.

    Returns:
        The number of files that were written; those that were there don't count.

    Raises:
        InputError: it is no tar or zip file, or damaged, or a member is a link, a device or lies outside of the folder.
        RunError: a file can't be written.
    """
    with members_of(archive) as members:
        return unpack_members(members, archive, folder, advance)


def unpack_members(
    members: Sequence[Member], archive: Path, folder: Path, advance: Callable[[int], None] = lambda count: None
) -> int:
    """Unpacks files of an open archive below a folder; see `unpack`.

    Raises:
        InputError: a member is a link or a device, lies outside of the folder, or a link in the folder leads outside.
        RunError: there is no room for what they say that they take, or a file can't be written.
    """
    for member in members:
        problem = member.problem or _outside(member.name)
        if problem:
            raise InputError(f"{archive}: member {member.name!r} {problem}; nothing of it was unpacked")
    top = os.path.realpath(folder)
    for parent in {PurePosixPath(member.name).parent for member in members}:
        if not Path(os.path.realpath(folder / parent)).is_relative_to(top):
            raise InputError(
                f"{archive}: {folder / parent} leads out of the folder by a link; nothing of it was unpacked"
            )
    absent = {id(member) for member in members if not _is_there(folder / member.name, member.length)}
    needed, free = sum(member.length for member in members if id(member) in absent), free_below(folder)
    if needed > free:
        raise RunError(f"{folder}: {size(needed)} are needed for {archive.name}, {size(free)} are free; free some")
    cleared = set[Path]()
    for member in members:
        if id(member) in absent:
            if (place := (folder / member.name).parent) not in cleared:
                remove_begun(place)
                cleared.add(place)
            with replacing(folder / member.name) as file, member.open() as content:
                copyfileobj(content, file)
        advance(1)
    return len(absent)


def _is_there(path: Path, length: int) -> bool:
    return path.is_file() and path.stat().st_size == length


def free_below(folder: Path) -> int:
    """Bytes that are free where a folder is or will be."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


@contextmanager
def members_of(archive: Path) -> Iterator[list[Member]]:
    """All members of a tar or zip file but its folders; of several with one name the last, as tar does.

    Raises:
        InputError: it is neither, or it is damaged.
    """
    if not archive.is_file():
        raise InputError(f"archive={archive}: there is no such file")
    with _reading(archive):
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                yield _last(_zipped(packed, info) for info in packed.infolist() if not info.is_dir())
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as packed_tar:
                yield _in_tar(packed_tar)
        else:
            raise InputError(f"archive={archive}: is no tar or zip file")


@contextmanager
def members_inside(member: Member, archive: Path) -> Iterator[list[Member]]:
    """As `members_of`, for a tar file that is a member of an archive.

    Raises:
        InputError: it is damaged.
    """
    with _reading(archive / member.name), member.open() as stream, tarfile.open(fileobj=stream) as packed:
        yield _in_tar(packed)


def _in_tar(packed: tarfile.TarFile) -> list[Member]:
    members = _last(_tarred(packed, info) for info in packed if not info.isdir())
    _ends_well(packed)
    return members


def _last(members: Iterable[Member]) -> list[Member]:
    return list({os.path.normpath(member.name): member for member in members}.values())


def _zipped(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
    problem = "is encrypted" if info.flag_bits & 1 else None if kind in (0, stat.S_IFREG) else "is no file"
    return Member(info.filename, info.file_size, lambda: packed.open(info), problem)


def _ends_well(packed: tarfile.TarFile) -> None:
    """Checks the end. tarfile takes a damaged header for it, and the end of a file that was cut, and does not read the
    compressor's checksum behind it.
    """
    stream = packed.fileobj
    assert stream is not None
    stream.seek(packed.offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it is cut: no mark of its end, at byte {packed.offset:,}")
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"no header where one should be, at byte {packed.offset:,}")
    while stream.read(1 << 20):
        pass


def _tarred(packed: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    def content() -> IO[bytes]:
        stream = packed.extractfile(info)
        assert stream is not None  # it is a regular file
        return stream

    return Member(info.name, info.size, content, None if info.isreg() else "is no file")


def _outside(name: str) -> str | None:
    path = PurePosixPath(name.replace("\\", "/"))
    inside = path.parts and not path.is_absolute() and ".." not in path.parts
    return None if inside else "lies outside of the folder"


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise InputError(f"{archive}: is damaged: {' '.join(str(error).split())}") from error
