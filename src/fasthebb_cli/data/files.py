"""A list of image files that takes about 60 bytes a file; Python's own strings and tuples would take 350."""

import os
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, overload

import torch
from torch import Tensor

from fasthebb_cli.errors import InputError

T_co = TypeVar("T_co", covariant=True)


class Listing(Protocol[T_co]):
    """A sequence without iteration or slices: it has a length, and items by number."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> T_co: ...


def composed(name: str) -> str:
    """The same name in one encoding of its accents: some systems keep é as one character, others as e and an accent."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def read_list(key: str, file: Path, expected: str) -> str:
    """The text of a file that a user made, which a setting names.

    Raises:
        InputError: it is no regular file, no text in UTF-8, or can't be read.
    """
    try:
        if file.exists() and not file.is_file():  # a pipe would never end
            raise InputError(f"{key}: {file} is no regular file; expected {expected}")
        return file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{key}: can't read {file} ({error}); expected {expected}") from error


class ImageFile(NamedTuple):
    """An image file.

    Args:
        name: its path relative to the data set's root.
        length: in bytes.
        label: -1 for none.
        changed: when anything of it was, in nanoseconds (ctime, which nobody can set); in an archive, a checksum; 0: it
            can't be read.
    """

    name: str
    path: str
    length: int
    label: int = -1
    changed: int = 0


class FileList(Sequence[ImageFile]):
    """Image files in order. Files can be appended, but not changed.

    It stores the files' base names as one string, the end of each in that string, the number of each file's folder
    (there are few folders), lengths and labels.
    """

    def __init__(self, files: Iterable[ImageFile] = ()) -> None:
        self._folders: list[tuple[str, str]] = []
        self._numbers: dict[tuple[str, str], int] = {}
        self._folder, self._last, self._ends = array("I"), bytearray(), array("q")
        self._lengths, self._labels, self._changed = array("q"), array("q"), array("q")
        for file in files:
            self.append(file)

    def append(self, file: ImageFile) -> None:
        last = os.path.basename(file.path)
        folder = (file.name[: len(file.name) - len(last)], file.path[: len(file.path) - len(last)])
        if folder not in self._numbers:
            self._numbers[folder] = len(self._folders)
            self._folders.append(folder)
        self._folder.append(self._numbers[folder])
        self._last += os.fsencode(last)
        self._ends.append(len(self._last))
        self._lengths.append(file.length)
        self._labels.append(file.label)
        self._changed.append(file.changed)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> ImageFile: ...
    @overload
    def __getitem__(self, index: slice) -> "FileList": ...
    def __getitem__(self, index: int | slice) -> "ImageFile | FileList":
        if isinstance(index, slice):
            return FileList(self[i] for i in range(*index.indices(len(self))))
        i = range(len(self))[index]
        last = os.fsdecode(bytes(self._last[self._ends[i - 1] if i else 0 : self._ends[i]]))
        name, path = self._folders[self._folder[i]]
        return ImageFile(name + last, path + last, self._lengths[i], self._labels[i], self._changed[i])

    def name_and_label(self, index: int) -> tuple[str, int]:
        """Of the file of this number, at less cost than all that is known of it."""
        last = os.fsdecode(bytes(self._last[self._ends[index - 1] if index else 0 : self._ends[index]]))
        return self._folders[self._folder[index]][0] + last, self._labels[index]

    @property
    def paths(self) -> Listing[str]:
        return _Paths(self)

    def state(self) -> bytes:
        """A digest of all names, lengths and times of change, but not of the labels."""
        hashed = blake2b(digest_size=16)
        for part in (repr([name for name, _ in self._folders]).encode(), self._folder, self._last, self._ends,
                     self._lengths, self._changed):  # fmt: skip
            hashed.update(f"{memoryview(part).nbytes} ".encode())
            hashed.update(part)
        return hashed.digest()

    def labels(self) -> Tensor:
        """int64 (N,). They share the list's memory, so no file can be appended afterwards."""
        return torch.frombuffer(self._labels, dtype=torch.int64) if len(self) else torch.empty(0, dtype=torch.int64)


class _Paths:
    def __init__(self, files: FileList) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> str:
        return self.files[index].path
