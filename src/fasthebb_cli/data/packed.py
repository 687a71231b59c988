"""Packed data sets: what `fasthebb data prepare out=FOLDER` writes and `dataset.root=FOLDER` reads.

images.bin    pixels, uint8 (N, C, S, S), or the image files one after the other ("encoded")
index.npz     labels (N,), and the indices of each part's images
listing       only for encoded images: name, digest and label of each file, for the digest at any size
packed.json   the description; written last, so a folder without it is not a packed data set

images.bin is mapped into memory: the processes of a machine share one copy, and only pages that are needed are read.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from fasthebb_cli.compute import processes
from fasthebb_cli.data.classes import listed_classes
from fasthebb_cli.data.collection import PARTS, Collection, Table, fit_of, in_memory, source_of
from fasthebb_cli.data.contents import cache_file, keep, tell
from fasthebb_cli.data.digests import digest_of, files_digest
from fasthebb_cli.data.source import Fit, ImageSource, InMemory
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import DatasetConfig

VERSION = 2
IMAGES_FILE, INDEX_FILE, LISTING_FILE, PACKED_FILE = "images.bin", "index.npz", "listing", "packed.json"
JOURNAL_FILE = "packing.jsonl"  # exists until the packing is finished
TOLD_BYTES = 2 * 2**30  # reading so much takes long enough to say so
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Plan:
    """What a folder is packed from. An interrupted packing is resumed only if all of this is the same.

    Args:
        images: number of images found, damaged ones included.
        digest: of all images found.
    """

    name: str
    format: str
    size: int
    channels: int
    images: int
    digest: str
    version: int = VERSION
    fit: str = "crop"
    background: str = "white"

    @property
    def fitted(self) -> Fit:
        return Fit(self.size, self.fit, self.background)


@dataclass(frozen=True)
class Packed:
    """Content of packed.json.

    Args:
        images: number of images.
        length: bytes of images.bin.
        digest: see `Dataset`; of encoded images, at the plan's size.
        counts: number of images in each part, in order.
        blocks: end and blake2b hash of each block of images.bin, to detect damage.
        digests: blake2b hash of each other file.
        left_out: one line for each file that could not be decoded.
    """

    plan: Plan
    images: int
    length: int
    digest: str
    counts: dict[str, int]
    classes: tuple[str, ...]
    table: Table | None
    blocks: list[tuple[int, str]]
    digests: dict[str, str]
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """With a digest of all the rest, by which a changed file is found; sets of earlier versions have none."""
        content = asdict(self)
        return content | {"seal": _seal_of(content)}


def _seal_of(content: Mapping[str, Any]) -> str:
    return digest_of([json.dumps(content, sort_keys=True).encode()])


def packed_root(config: DatasetConfig) -> Path | None:
    """dataset.root if it is a packed data set, otherwise None.

    Raises:
        InputError: its packing is not finished, or PACKED_FILE is lost.
    """
    if config.root is None:
        return None
    root = Path(config.root).expanduser()
    if (root / PACKED_FILE).is_file():
        return root
    if (root / JOURNAL_FILE).is_file():
        raise InputError(f"{root}: is only partly packed; the `fasthebb data prepare` that began it goes on")
    if (root / IMAGES_FILE).is_file() and (root / INDEX_FILE).is_file():
        raise InputError(f"{root / PACKED_FILE}: is missing beside {IMAGES_FILE}; pack again into another folder")
    return None


def read_packed(root: Path) -> Packed:
    """The content of packed.json.

    Raises:
        InputError: it or another file is damaged, or of another version.
    """
    try:
        content = json.loads((root / PACKED_FILE).read_text())
        seal = content.pop("seal", None)
        if seal not in (None, _seal_of(content)):
            raise ValueError("it was changed after it had been written")
        content["plan"] = plan = Plan(**content["plan"])
        content["table"] = None if content["table"] is None else Table(*content["table"])
        content["blocks"] = [(int(end), str(digest)) for end, digest in content["blocks"]]
        for key in ("classes", "left_out"):
            content[key] = tuple(content[key])
        packed = Packed(**content)
        pixels = packed.images * plan.channels * plan.size**2
        if plan.format == "uint8" and packed.length != pixels:
            raise ValueError(f"{packed.images:,} images have {pixels:,} bytes, not {packed.length:,}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{root / PACKED_FILE}: is damaged ({error}); pack again into another folder") from error
    if packed.plan.version != VERSION:
        raise InputError(f"{root}: is packed in version {packed.plan.version}, not {VERSION}; pack it again")
    file = root / IMAGES_FILE
    length = file.stat().st_size if file.is_file() else 0
    if length != packed.length:
        raise InputError(f"{file}: has {length:,} bytes instead of {packed.length:,}; pack again into another folder")
    for name, digest in packed.digests.items():
        if digest_of_file(root / name) != digest:
            raise InputError(f"{root / name}: is not what was packed; pack again into another folder")
    return packed


def digest_of_file(path: Path) -> str:
    """32 hexadecimal digits: the blake2b hash of a file; empty for a missing file."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file_digest(file, partial(blake2b, digest_size=16)).hexdigest()


def damaged_block(folder: Path, blocks: Sequence[tuple[int, str]]) -> int | None:
    """The number of the first block (end, digest) of images.bin whose digest differs; None if none does."""
    starts = [0, *(end for end, _ in blocks)]

    def is_whole(number: int) -> bool:
        end, digest = blocks[number]
        hashed, left = blake2b(digest_size=16), end - starts[number]
        with (folder / IMAGES_FILE).open("rb") as file:
            file.seek(starts[number])
            while left and (piece := file.read(min(left, 1 << 20))):
                hashed.update(piece)
                left -= len(piece)
        return hashed.hexdigest() == digest

    with ThreadPoolExecutor(max(1, min(8, torch.get_num_threads()))) as pool:
        return next((number for number, whole in enumerate(pool.map(is_whole, range(len(blocks)))) if not whole), None)


def check_blocks(root: Path, packed: Packed) -> None:
    """Compares images.bin with its digests, once for each time that the file has changed; see `contents`.

    Raises:
        InputError: it is not what was packed.
    """
    status = (root / IMAGES_FILE).stat()
    state = f"{digest_of_file(root / PACKED_FILE)} {status.st_size} {status.st_ctime_ns}"
    checked = cache_file("packed", os.path.realpath(root))
    if checked.is_file() and checked.read_bytes() == state.encode():
        return
    if status.st_size >= TOLD_BYTES:
        tell(f"reads {root / IMAGES_FILE} once, to see that it is what was packed")
    if damaged_block(root, packed.blocks) is not None:
        raise InputError(f"{root / IMAGES_FILE}: is not what was packed; pack again into another folder")
    keep(checked, state.encode())


def open_packed(root: Path, config: DatasetConfig) -> Collection:
    """The collection that was packed, without its damaged images.

    Raises:
        InputError: the folder holds another data set or another size, or is damaged.
    """
    packed = read_packed(root)
    plan = packed.plan
    if plan.name != config.name:
        raise InputError(f"dataset.root={root} holds packed {plan.name}; use dataset={plan.name}, or another root")
    if plan.format == "uint8" and plan.fitted.text() != fit_of(config).text():
        keys = ("size", "fit", "background")
        key = next(key for key in keys if getattr(plan, key) != getattr(config, key))
        value, packed_as = getattr(config, key), getattr(plan, key)
        raise InputError(f"dataset.{key}={value}: {root} is packed with {key}={packed_as}; use that, or pack it again")
    for key in ("labels", "unlabelled", "options"):
        if getattr(config, key):
            raise InputError(f"dataset.{key}: {root} is packed; set it when it is prepared")
    if config.classes is not None and listed_classes(config.classes, packed.classes) != packed.classes:
        raise InputError(f"dataset.classes: {root} is packed with more classes; set it when it is prepared")
    processes.from_first(lambda: check_blocks(root, packed))
    index = _read_index(root)
    file = root / IMAGES_FILE
    digest = packed.digest
    source: ImageSource
    if plan.format == "encoded":
        digest = files_digest(packed.counts, fit_of(config), packed.classes, _lines(root))
        images = EncodedImages(file, index["ends"])
        source = source_of(images, config, images.content)
    elif in_memory(config, packed.images, plan.channels):
        shape = (-1, plan.channels, plan.size, plan.size)
        source = InMemory(torch.from_numpy(np.memmap(file, np.uint8, "c").reshape(shape)))  # mapped, not read yet
    else:
        source = PackedPixels(file, plan.channels, plan.size)
    parts: dict[str, Any] = {part: torch.from_numpy(index[part]) for part in PARTS if part in index}
    return Collection(
        source,
        torch.from_numpy(index["labels"]),
        packed.classes,
        digest=digest,
        table=packed.table,
        left_out=packed.left_out,
        **parts,
    )


class PackedPixels:
    """Pixels of a packed data set, mapped into memory. Each worker process maps the file itself."""

    def __init__(self, file: Path, channels: int, size: int) -> None:
        self.file, self.channels, self.size = file, channels, size
        self._pixels: Bytes = np.memmap(file, np.uint8, "r").reshape(-1, channels, size, size)

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, indices: Tensor) -> Tensor:
        """uint8 (B, C, S, S)."""
        return torch.from_numpy(self._pixels[indices.numpy()])

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedPixels, (self.file, self.channels, self.size)


class EncodedImages:
    """A listing (see `data.files.Listing`) of packed image files, which are named by their number.

    Args:
        ends: int64 (N,), the end of each image in the file.
    """

    def __init__(self, file: Path, ends: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self.file, self.ends = file, ends
        self._bytes: Bytes = np.memmap(file, np.uint8, "r")

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int, /) -> str:
        return f"{self.file}, image {range(len(self))[index]}"

    def content(self, name: str) -> bytes:
        """The bytes of the image of that name."""
        index = int(name.rpartition(" ")[2])
        return self._bytes[self.ends[index - 1] if index else 0 : self.ends[index]].tobytes()

    def __reduce__(self) -> tuple[Any, ...]:
        return EncodedImages, (self.file, self.ends)


def _read_index(root: Path) -> dict[str, Any]:
    try:
        with np.load(root / INDEX_FILE, allow_pickle=False) as index:
            return dict(index)
    except (OSError, ValueError, BadZipFile) as error:
        raise InputError(f"{root / INDEX_FILE}: is damaged ({error}); pack again into another folder") from error


def _lines(root: Path) -> Iterator[bytes]:
    """The file `listing`, in pieces; see `data.digests.listing`."""
    try:
        with (root / LISTING_FILE).open("rb") as file:
            yield from iter(lambda: file.read(1 << 16), b"")
    except OSError as error:
        raise InputError(f"{root / LISTING_FILE}: can't be read: {error.strerror}") from error
