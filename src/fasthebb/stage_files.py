"""The files in a stage's directory that lead to its model. Imports no torch."""

import json
import os
import stat
from collections.abc import Iterable, Mapping
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

RESULTS_FILE = "results.json"
MODEL_FILE = "model.safetensors"
FINGERPRINT_FILE = "fingerprint.json"
DEEPEST, TOO_DEEP = 16, "it is nested too deeply"  # ours are five deep
AS_YOUNG = frozenset(("weights", "balanced_top1"))  # keys of results that no version without a seal wrote
LARGEST_TEXT = 64 * 2**20  # bytes of a file that is read whole; with thousands of classes, ours have a few megabytes


def read_bytes(path: Path, largest: int = LARGEST_TEXT) -> bytes:
    """The content of a small regular file. It never waits, as reading a named pipe would.

    Raises:
        OSError: the file is missing or can't be read.
        ValueError: it is no regular file, or larger than `largest`.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"it is larger than {largest:,} bytes")
    return content


def parse_json(text: str | bytes) -> Any:
    """As `json.loads`.

    Raises:
        ValueError: it is no JSON in UTF-8, or it is nested too deeply.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except ValueError as error:
        raise ValueError(f"it is no JSON ({error})") from error
    inner = [value]
    for _ in range(DEEPEST):
        for item in inner:
            _check_text(item)
        inner = [item for outer in inner if isinstance(outer, dict | list) for item in _items(outer)]
        if not inner:
            return value
    raise ValueError(TOO_DEEP)


def _check_text(value: object) -> None:
    """Raises:
    ValueError: a text, or a key of a mapping, holds half a character, which nothing can write.
    """
    for text in value if isinstance(value, dict) else [value]:
        if isinstance(text, str) and not text.isascii():
            try:
                os.fsencode(text)  # names of files may have bytes that are no UTF-8
            except UnicodeEncodeError:
                raise ValueError("it has a text with half a character in it") from None


def digest_of_file(path: Path) -> str:
    """32 hexadecimal digits: the blake2b hash of a file."""
    with path.open("rb") as file:
        return file_digest(file, partial(blake2b, digest_size=16)).hexdigest()


def seal_of(results: Mapping[str, Any]) -> str:
    """What results.json has under `seal`: a digest of its other keys, by which an edited file is found."""
    others = {key: value for key, value in results.items() if key != "seal"}
    return blake2b(json.dumps(others, sort_keys=True).encode(), digest_size=16).hexdigest()


def check_seal(results: Mapping[str, Any]) -> None:
    """Raises:
    ValueError: the results were changed after they had been written. Those of earlier versions have no seal, nor keys
        that are as young.
    """
    is_sealed = "seal" in results or not AS_YOUNG.isdisjoint(results)
    if is_sealed and results.get("seal") != seal_of(results):
        raise ValueError("it was changed after its stage had finished")


def _items(outer: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return outer.values() if isinstance(outer, dict) else outer


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds a mapping.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        value = parse_json(read_bytes(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete its directory to start that stage over") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds no mapping; delete its directory to start that stage over")
    return value
