"""Writes a packed data set block by block, so that it can be killed at any moment and goes on.

Images are appended to images.bin; after each block of some 256 MiB the file is synced and a line goes to the journal.
What lies behind the last block of the journal is cut off on the next start. packed.json comes last.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from fasthebb_cli.data.collection import Collection, check_classes, files_digest, listed
from fasthebb_cli.data.packed import (
    IMAGES_FILE,
    INDEX_FILE,
    JOURNAL_FILE,
    LISTING_FILE,
    PACKED_FILE,
    PARTS,
    Packed,
    Plan,
    digest_of_file,
    read_packed,
)
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.prepare.checking import Checked, Traits, add_traits
from fasthebb_cli.run.directory import write_atomically, write_json

BLOCK_BYTES = 256 * 2**20  # at most so much is done again after a kill


class Packing:
    """A folder that is being packed, to be used with `with`.

    Raises:
        InputError: it holds other packed images, or the beginning of them, or other things.
        RunError: it can't be written.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.blocks: list[dict[str, Any]] = []
        path = folder / JOURNAL_FILE
        with ExitStack() as files:  # closed if an error ends this, else by __exit__
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if not path.exists() and any(folder.iterdir()):
                    raise InputError(f"out={folder} is not empty; give a folder that is empty or still to be made")
                self.journal = files.enter_context(path.open("ab+"))
                self.data = files.enter_context((folder / IMAGES_FILE).open("ab"))
                self._read_journal()
                blocks = [(block["end"], block["digest"]) for block in self.blocks]
                if damaged_block(folder, blocks) is not None:
                    raise ValueError(f"{IMAGES_FILE} is not what was written")
                self.data.truncate(self.done)
            except OSError as error:
                raise RunError(f"can't write {folder}: {error.strerror}") from error
            except (ValueError, KeyError, TypeError) as error:  # a line that is no JSON, or not of ours
                raise InputError(f"{path}: is damaged ({error}); delete {folder} to start over") from error
            self._files = files.pop_all()
        self._begin_block()

    def __enter__(self) -> "Packing":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # of what a full disk did not take: the journal says what counts
            self._files.close()

    @property
    def images(self) -> int:
        """Of the plan's that are done."""
        return self.blocks[-1]["images"] if self.blocks else 0

    @property
    def done(self) -> int:
        """Bytes written."""
        return self.blocks[-1]["end"] if self.blocks else 0

    def _read_journal(self) -> None:
        """Finds what is done and cuts off the line that a kill has torn."""
        self.journal.seek(0)
        lines = [line for line in self.journal.read().splitlines(keepends=True) if line.endswith(b"\n")]
        if lines and json.loads(lines[0]) != asdict(self.plan):
            raise InputError(
                f"out={self.folder} was begun with other images or settings; delete it, or choose another folder"
            )
        self.journal.truncate(sum(map(len, lines)))
        if not lines:
            _append(self.journal, asdict(self.plan))
        self.blocks = [json.loads(line) for line in lines[1:]]

    def _begin_block(self) -> None:
        self.hashed = blake2b(digest_size=16)
        self.block: dict[str, Any] = {"images": self.images, "lengths": [], "damaged": {}, "traits": {}}
        self.start = self.end = self.done

    def add(self, checked: Checked) -> None:
        """Appends a stretch of images that follows the last one.

        Raises:
            RunError: the disk is full or can't be written; what the journal has stays.
        """
        content = checked.content.contiguous().numpy().data
        self.hashed.update(content)
        self.end += content.nbytes
        self.block["images"] += checked.images
        if self.plan.format == "encoded":
            self.block["lengths"] += checked.lengths
        self.block["damaged"] |= {str(i): problem for i, problem in checked.damaged.items()}
        add_traits(self.block["traits"], checked.traits)
        try:
            self.data.write(content)
            if self.end - self.start >= BLOCK_BYTES or self.block["images"] == self.plan.images:
                self.data.flush()
                os.fsync(self.data.fileno())
                self.block |= {"end": self.end, "digest": self.hashed.hexdigest()}
                _append(self.journal, self.block)
                self.blocks.append(self.block)
                self._begin_block()
        except OSError as error:
            raise RunError(f"can't write {self.folder}: {error.strerror}; the same command goes on") from error

    def damaged(self) -> dict[int, str]:
        """Number and error of each image that can't be decoded."""
        return {int(i): problem for block in self.blocks for i, problem in block["damaged"].items()}

    def traits(self) -> Traits:
        found: Traits = {}
        for block in self.blocks:
            add_traits(found, block["traits"])
        return found

    def finish(self, collection: Collection) -> Packed:
        """Writes what is still missing, without the images that can't be decoded.

        Args:
            collection: with all images.

        Raises:
            InputError: a class has lost all of its training images.
        """
        damaged = self.damaged()
        parts = {part: chosen for part in PARTS if (chosen := getattr(collection, part)) is not None}
        readable = torch.ones(len(collection.labels), dtype=torch.bool)
        readable[list(damaged)] = False
        check_classes(collection.labels[parts["train"]], readable[parts["train"]], collection.classes)
        index = {"labels": collection.labels[readable]} | _renumbered(parts, readable)
        counts = {part: len(index[part]) for part in parts if part != "unlabelled" or len(parts[part])}
        digest, kept = collection.digest, readable.nonzero().flatten().tolist()
        if collection.files is not None and damaged:
            lines = (listed(collection.files[i]) for i in kept)
            digest = files_digest(counts, self.plan.size, collection.classes, lines)
        if collection.files is not None and self.plan.format == "encoded":
            index["ends"] = torch.tensor([n for block in self.blocks for n in block["lengths"]]).cumsum(0)
            listing = (listed(collection.files[i]) for i in kept)
            write_atomically(self.folder / LISTING_FILE, lambda file: file.writelines(listing))
        arrays: Mapping[str, Any] = {name: value.numpy() for name, value in index.items()}
        write_atomically(self.folder / INDEX_FILE, lambda file: np.savez(file, **arrays))
        blocks = [(block["end"], block["digest"]) for block in self.blocks]
        left_out = tuple(damaged[i] for i in sorted(damaged))
        written = [name for name in (INDEX_FILE, LISTING_FILE) if (self.folder / name).exists()]
        packed = Packed(
            self.plan, int(readable.sum()), blocks[-1][0], digest, counts, collection.classes, collection.table, blocks,
            {name: digest_of_file(self.folder / name) for name in written}, left_out,
        )  # fmt: skip
        write_json(self.folder / PACKED_FILE, packed.to_json())
        for name in (INDEX_FILE, LISTING_FILE, PACKED_FILE):
            for begun in self.folder.glob(f".{name}.*"):  # what a kill left half-written
                begun.unlink()
        (self.folder / JOURNAL_FILE).unlink()
        return packed


def finished(folder: Path, plan: Plan) -> Packed | None:
    """What the folder holds, if it is packed already.

    Raises:
        InputError: from other images or settings.
    """
    if not (folder / PACKED_FILE).is_file():
        return None
    packed = read_packed(folder)
    if packed.plan != plan:
        raise InputError(f"out={folder} holds another packed data set ({_told(packed.plan)}); choose another folder")
    return packed


def damaged_block(folder: Path, blocks: Sequence[tuple[int, str]]) -> int | None:
    """Number of the first block (end, digest) of images.bin that is not what was written, None if all are."""
    start = 0
    with (folder / IMAGES_FILE).open("rb") as file:
        for number, (end, digest) in enumerate(blocks):
            hashed, left = blake2b(digest_size=16), end - start
            while left and (piece := file.read(min(left, 1 << 20))):
                hashed.update(piece)
                left -= len(piece)
            if hashed.hexdigest() != digest:
                return number
            start = end
    return None


def _told(plan: Plan) -> str:
    return f"{plan.images:,} images of {plan.name} at {plan.size}, {plan.format}"


def _renumbered(parts: Mapping[str, Tensor], readable: Tensor) -> dict[str, Tensor]:
    """Numbers of the readable images of each part among the readable ones."""
    number = readable.cumsum(0) - 1
    return {part: number[chosen[readable[chosen]]] for part, chosen in parts.items()}


def _append(journal: IO[bytes], line: dict[str, Any]) -> None:
    journal.write(json.dumps(line).encode() + b"\n")
    journal.flush()
    os.fsync(journal.fileno())
