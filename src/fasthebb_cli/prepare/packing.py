"""Writes a packed data set block by block. A kill at any moment loses one block at most.

Images are appended to images.bin. After each block of about 256 MiB the file is synced, and the journal gets a line.
The next start cuts off what follows the last block of the journal. packed.json is written last.
"""

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from fasthebb_cli.data.collection import PARTS, Collection, check_classes
from fasthebb_cli.data.digests import files_digest, listing
from fasthebb_cli.data.packed import (
    IMAGES_FILE,
    INDEX_FILE,
    JOURNAL_FILE,
    LISTING_FILE,
    PACKED_FILE,
    Packed,
    Plan,
    damaged_block,
    digest_of_file,
)
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.prepare.checking import Checked, Traits, add_traits
from fasthebb_cli.run.directory import write_atomically, write_json

BLOCK_BYTES = 256 * 2**20  # at most so much is written again after a kill


class Packing:
    """A folder that is being packed; use it with `with`.

    Raises:
        InputError: the folder holds other images, a damaged journal, or other files.
        RunError: the folder can't be written.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.blocks: list[dict[str, Any]] = []
        path = folder / JOURNAL_FILE
        with ExitStack() as files:  # an error here closes the files; else __exit__ does
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
            except (ValueError, KeyError, TypeError) as error:  # a line that is no JSON, or has other keys
                raise InputError(f"{path}: is damaged ({error}); delete {folder} to start over") from error
            self._files = files.pop_all()
        self._begin_block()

    def __enter__(self) -> "Packing":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a full disk may refuse the rest; only what the journal lists counts
            self._files.close()

    @property
    def images(self) -> int:
        """How many of the plan's images are in finished blocks."""
        return self.blocks[-1]["images"] if self.blocks else 0

    @property
    def done(self) -> int:
        """How many bytes are in finished blocks."""
        return self.blocks[-1]["end"] if self.blocks else 0

    def _read_journal(self) -> None:
        """Reads the finished blocks, and cuts off a last line that a kill left incomplete."""
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
        """Appends the next stretch of images.

        Raises:
            RunError: the disk is full or can't be written. The finished blocks stay.
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
        """The number and the error of each image that can't be decoded."""
        return {int(i): problem for block in self.blocks for i, problem in block["damaged"].items()}

    def traits(self) -> Traits:
        found: Traits = {}
        for block in self.blocks:
            add_traits(found, block["traits"])
        return found

    def finish(self, collection: Collection) -> Packed:
        """Writes the index, the listing and packed.json, without the images that can't be decoded.

        Args:
            collection: all images, the damaged ones included.

        Raises:
            InputError: no training image of a class can be decoded.
        """
        damaged = self.damaged()
        parts = {part: chosen for part in PARTS if (chosen := getattr(collection, part)) is not None}
        readable = torch.ones(len(collection.labels), dtype=torch.bool)
        readable[list(damaged)] = False
        check_classes(collection.labels[parts["train"]], readable[parts["train"]], collection.classes)
        index = {"labels": collection.labels[readable]} | _renumbered(parts, readable)
        counts = {part: len(index[part]) for part in parts if part != "unlabelled" or len(parts[part])}
        digest, kept = collection.digest, readable.nonzero().flatten().tolist()
        if collection.files is not None and collection.contents is not None:
            files, contents = collection.files, collection.contents
            if damaged:
                digest = files_digest(counts, self.plan.fitted, collection.classes, listing(files, contents, kept))
            if self.plan.format == "encoded":
                index["ends"] = torch.tensor([n for block in self.blocks for n in block["lengths"]]).cumsum(0)
                lines = listing(files, contents, kept)
                write_atomically(self.folder / LISTING_FILE, lambda file: file.writelines(lines))
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
            for begun in self.folder.glob(f".{name}.*"):  # left incomplete by a kill
                begun.unlink()
        (self.folder / JOURNAL_FILE).unlink()
        return packed


def _renumbered(parts: Mapping[str, Tensor], readable: Tensor) -> dict[str, Tensor]:
    """Each part's readable images, numbered among all readable images."""
    number = readable.cumsum(0) - 1
    return {part: number[chosen[readable[chosen]]] for part, chosen in parts.items()}


def _append(journal: IO[bytes], line: dict[str, Any]) -> None:
    journal.write(json.dumps(line).encode() + b"\n")
    journal.flush()
    os.fsync(journal.fileno())
