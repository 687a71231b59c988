"""The digest of a data set of files: of each one's name, content and label, and of all that they are read by."""

import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from itertools import chain, islice

from fasthebb_cli.data.contents import Digests
from fasthebb_cli.data.files import FileList
from fasthebb_cli.data.source import Fit

BLOCK = 4096  # lines of a digest that are made and hashed together


def listing(files: FileList, contents: Digests, chosen: Iterable[int] | None = None) -> Iterator[bytes]:
    """A line for each file, of its name, the digest of what is in it, and its label.

    Args:
        contents: (N, WIDTH).
        chosen: numbers of the files, in order; None: all.
    """
    width, first, digits = 2 * contents.shape[1], -BLOCK, ""
    for i in range(len(files)) if chosen is None else chosen:
        if not first <= i < first + BLOCK:
            first = i - i % BLOCK
            digits = contents[first : first + BLOCK].tobytes().hex()
        name, label = files.name_and_label(i)
        yield os.fsencode(f"{name}\0{digits[width * (i - first) : width * (i - first + 1)]}\0{label}\n")


def files_digest(counts: Mapping[str, int], fit: Fit, classes: tuple[str, ...], lines: Iterable[bytes]) -> str:
    """The digest of a data set of files, see `Dataset`.

    Args:
        counts: number of files in each part, in order.
        lines: of all files, see `listing`; they may come in larger pieces.
    """
    sizes = [f"{part} {count}\n".encode() for part, count in counts.items()]
    hashed = blake2b(digest_of(chain(sizes, [fit.text().encode()], map(os.fsencode, classes))).encode(), digest_size=16)
    lines = iter(lines)
    while block := b"".join(islice(lines, BLOCK)):
        hashed.update(block)
    return hashed.hexdigest()


def digest_of(parts: Iterable[bytes | memoryview]) -> str:
    """32 hexadecimal digits: the blake2b hash of the pieces, each with its length."""
    hashed = blake2b(digest_size=16)
    for part in parts:
        hashed.update(f"{memoryview(part).nbytes} ".encode())
        hashed.update(part)
    return hashed.hexdigest()
