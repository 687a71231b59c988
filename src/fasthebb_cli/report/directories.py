"""Stage directories on the disk: where they are, their states, and their contents.

A directory is finished (results.json), running (its lock is held), failed (error.txt) or stale (begun and left, for
example killed). Nothing here needs torch, so the commands that only read start at once.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fasthebb.stage_files import parse_json, read_bytes
from fasthebb_cli.errors import InputError
from fasthebb_cli.report.shapes import check_content, check_epoch, check_results
from fasthebb_cli.run.directory import (
    CHECKPOINT_FILE,
    ERROR_FILE,
    FINGERPRINT_FILE,
    METRICS_FILE,
    RESULTS_FILE,
    holder_of,
)
from fasthebb_cli.settings.fingerprint import NUMBERS_VERSION, fingerprint_of, with_later_keys
from fasthebb_cli.settings.kind import FineTuning
from fasthebb_cli.settings.stages import ALL_KINDS

STATES = ("finished", "running", "failed", "stale")
DIGITS = re.compile(r"-([0-9a-f]{8})$")  # of the fingerprint, at the end of a directory's name
DAMAGED = "damaged"  # the first word of the note of a directory whose files can't be read


@dataclass(frozen=True)
class StageDirectory:
    """One stage's directory.

    Args:
        content: the settings and images that its fingerprint covers, as flat keys.
        results: the content of results.json; empty unless the stage is finished.
        note: who works on it, why it failed, or how it can be resumed.
    """

    path: Path
    state: str
    content: dict[str, Any]
    results: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def kind(self) -> str:
        return str(self.content.get("kind", "?"))

    @property
    def stage(self) -> str:
        return str(self.content.get("stage", self.kind))

    @property
    def pretrains(self) -> bool:
        """The rule alone taught the network."""
        return self.kind in ALL_KINDS and ALL_KINDS[self.kind].pretrains

    @property
    def shared(self) -> bool:
        """Cells with other labels share the stage."""
        return self.kind in ALL_KINDS and ALL_KINDS[self.kind].shared

    @property
    def measures(self) -> bool:
        """The stage left the weights as they were."""
        return self.kind in ALL_KINDS and ALL_KINDS[self.kind].measures

    @property
    def fine_tuning(self) -> FineTuning | None:
        """How the stage made a classifier from labels; None: it made none."""
        prefix = f"{self.kind}."
        own = {key.removeprefix(prefix): value for key, value in self.content.items() if key.startswith(prefix)}
        return ALL_KINDS[self.kind].fine_tuning(own) if self.kind in ALL_KINDS else None

    @property
    def fingerprint(self) -> str | None:
        return self.results.get("fingerprint")

    @property
    def previous(self) -> str | None:
        """The fingerprint of the stage that its weights come from; None: from scratch."""
        return self.content.get("previous")

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, up to the first line that can't be read, as a kill leaves one."""
        return self._epochs[0]

    @property
    def unread(self) -> str:
        """Why a finished stage's metrics.jsonl can't be read to its end; empty: it can, or there is none."""
        return self._epochs[1] if self.state == "finished" else ""

    @cached_property
    def _epochs(self) -> tuple[list[dict[str, Any]], str]:
        records: list[dict[str, Any]] = []
        try:
            for line in read_bytes(self.path / METRICS_FILE).decode().splitlines():
                record = parse_json(line)
                check_epoch(record)
                records.append(record)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            return records, f"{METRICS_FILE} can't be read after line {len(records)}: {error}"
        return records, ""


def find_directories(places: Sequence[Path]) -> list[StageDirectory]:
    """All stage directories at or below the given places, each once, sorted by path.

    Raises:
        InputError: a place is not a directory, or no place holds a stage directory.
    """
    found: dict[Path, StageDirectory] = {}
    for place in places:
        if not place.is_dir():
            raise InputError(f"{place}: no such directory; name one that out= made, or one stage's directory in it")
        paths = [place] if is_stage(place) else _stages_in(place, "**")
        found |= {path.resolve(): read_directory(path) for path in paths}
    if not found:
        raise InputError(
            f"{', '.join(map(str, places))}: no stage directories there; fasthebb train out=DIR makes some"
        )
    return [found[path] for path in sorted(found)]


def is_stage(place: Path) -> bool:
    """Whether a place is the directory of one stage."""
    return (place / FINGERPRINT_FILE).exists()


def siblings(places: Sequence[Path]) -> list[StageDirectory]:
    """The places that are a stage's directory, and all beside them, where the stages before usually are."""
    parents = dict.fromkeys(place.resolve().parent for place in places if is_stage(place))
    return [read_directory(path) for parent in parents for path in _stages_in(parent, "*")]


def read_directory(path: Path) -> StageDirectory:
    """One stage's directory. A damaged one counts as failed, and its note says so and why."""
    try:
        content = _checked(path / FINGERPRINT_FILE, check_content)
    except ValueError as error:
        return StageDirectory(path, "failed", {}, note=f"{DAMAGED}: {FINGERPRINT_FILE}: {error}")
    edited = _edited(path, content)
    content = with_later_keys(content)
    if edited:
        return StageDirectory(path, "failed", content, note=f"{DAMAGED}: {FINGERPRINT_FILE}: {edited}")
    if os.path.lexists(path / RESULTS_FILE):
        try:
            results = _checked(path / RESULTS_FILE, check_results)
            named = DIGITS.search(path.resolve().name)
            if named and not str(results["fingerprint"]).startswith(named[1]):
                raise ValueError("it is of another directory's stage")
            return StageDirectory(path, "finished", content, results)
        except ValueError as error:
            return StageDirectory(path, "failed", content, note=f"{DAMAGED}: {RESULTS_FILE}: {error}")
    holder = holder_of(path)
    if holder is not None:
        return StageDirectory(path, "running", content, note=holder)
    if (path / ERROR_FILE).exists():
        return StageDirectory(path, "failed", content, note=_text(path / ERROR_FILE))
    resumable = (path / CHECKPOINT_FILE).exists()
    return StageDirectory(path, "stale", content, note="the same command goes on" if resumable else "starts anew")


def _edited(path: Path, content: Mapping[str, Any]) -> str:
    """That the content is not what the directory's name is a digest of; empty: it is, or an earlier version wrote it,
    which left other defaults out.
    """
    named = DIGITS.search(path.resolve().name)
    if named is None or content.get("version") != NUMBERS_VERSION or content.get("kind") not in ALL_KINDS:
        return ""
    return "" if fingerprint_of(content).startswith(named[1]) else "it was changed after its stage had begun"


def count_states(directories: Sequence[StageDirectory]) -> str:
    """How many there are of each state: 12 finished, 1 running."""
    states = Counter(directory.state for directory in directories)
    return ", ".join(f"{states[state]:,} {state}" for state in STATES if states[state])


def _stages_in(place: Path, pattern: str) -> list[Path]:
    return [path.parent for path in sorted(place.glob(f"{pattern}/{FINGERPRINT_FILE}"))]


def _checked(path: Path, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """What a JSON file holds.

    Raises:
        ValueError: why it can't be read or used.
    """
    try:
        content = parse_json(read_bytes(path))
    except OSError as error:
        raise ValueError(error.strerror) from error
    if not isinstance(content, dict):
        raise ValueError(f"it must be a mapping, not {str(content)[:80]}")
    check(content)
    return content


def _text(path: Path) -> str:
    try:
        return " ".join(read_bytes(path).decode(errors="replace").split())
    except (OSError, ValueError) as error:
        return f"{ERROR_FILE} can't be read: {error}"
