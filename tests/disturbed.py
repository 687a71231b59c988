"""Runs that are disturbed from outside, and what must be the same afterwards as in one that was left alone."""

import json
import random
import signal
import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tests.conftest import SMALL
from tests.lives import Life, Moment, Started, command

TIMES = ("seconds", "images_per_second", "finished", "seal")


def words(out: Path, *arguments: str) -> list[str]:
    return ["train", *SMALL, "label_fraction=0.2", f"out={out}", *arguments]


def variables(save_seconds: float) -> dict[str, str]:
    return {"FASTHEBB_SAVE_SECONDS": str(save_seconds), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def start(
    out: Path, save_seconds: float, *arguments: str, moment: Moment | None = None, size: int = 1,
    events: Path | None = None,
) -> Life:  # fmt: skip
    """`fasthebb train` on SMALL."""
    target = command(words(out, *arguments), moment, events)
    return Life(target, out.with_suffix(".log"), size=size, variables=variables(save_seconds))


def start_anew(out: Path, save_seconds: float, *arguments: str, moment: Moment | None = None, size: int = 1) -> Started:
    """The same by processes that begin with Python's start."""
    return Started(words(out, *arguments), moment, size=size, variables=variables(save_seconds))


@cache
def undisturbed(*arguments: str, size: int = 1) -> dict[str, object]:
    """What a run gives that is left alone."""
    with tempfile.TemporaryDirectory() as folder:
        life = start(Path(folder) / "runs", 1000, *arguments, size=size)
        assert life.wait() == 0, life.text()
        return outcome(Path(folder) / "runs")


@cache
def events(*arguments: str, size: int = 1) -> Counter[str]:
    """How many events `Moment.calls` counts in each stage of a run that saves after each step."""
    with tempfile.TemporaryDirectory() as folder:
        never, file = Moment(0, calls=True), Path(folder) / "events"
        life = start(Path(folder) / "runs", 0.0, *arguments, moment=never, size=size, events=file)
        assert life.wait() == 0, life.text()
        assert outcome(Path(folder) / "runs") == undisturbed(*arguments, size=size)
        return counted(file)


def counted(file: Path) -> Counter[str]:
    found = Counter[str]()
    for line in file.read_text().splitlines():
        stage, number = line.split()
        found[stage] += int(number)
    return found


def kill_at_random_moments(
    folder: Path, kills: Mapping[str, int], *arguments: str, size: int = 1, seed: int = 0
) -> Counter[str]:
    """Begins a run again and again, which saves after each step, kills it with -9, and at last lets it finish; further
    runs follow until each stage was killed as often as asked for. All must end as one that was left alone.

    Args:
        kills: how often in each stage, and as "start" on the way there; the moments are drawn from `seed`.
        size: how many processes the run has, which are all killed at once.

    Returns:
        How often each stage was killed.
    """
    draw, whole, file = random.Random(seed), events(*arguments, size=size), folder.with_suffix(".events")
    left, hit, out = Counter(kills), Counter[str](), folder / "0"
    while +left:
        target = draw.choices(list(+left), list((+left).values()))[0] if draw.random() < 0.5 else next(iter(+left))
        most = whole[target] if target in ("start", "probe") else 2 * whole[target] // left[target]
        moment = Moment(draw.randint(1, min(most, whole[target])), target, calls=True, everyone=True)
        file.unlink(missing_ok=True)
        life = start(out, 0.0, *arguments, moment=moment, size=size, events=file)
        if life.wait() == -signal.SIGKILL:
            stage = file.read_text().split()[-2]
            hit[stage] += 1
            left[stage] -= 1
        else:
            out = _finished(life, out, *arguments, size=size)
    if out.exists():
        _finished(start(out, 0.0, *arguments, size=size), out, *arguments, size=size)
    return hit


def _finished(life: Life, out: Path, *arguments: str, size: int) -> Path:
    """The folder of a run that is to follow on this one, which is done."""
    assert life.wait() == 0, life.text()
    assert outcome(out) == undisturbed(*arguments, size=size)
    return out.with_name(str(int(out.name) + 1))


def outcome(out: Path) -> dict[str, object]:
    """Every weight file's bytes, and results and epochs without their times."""
    found: dict[str, object] = {}
    for path in sorted(out.glob("*/model.safetensors")):
        found[f"{path.parent.name}/weights"] = path.read_bytes()
    for path in sorted(out.glob("*/results.json")):
        results = json.loads(path.read_text())
        found[f"{path.parent.name}/results"] = {key: value for key, value in results.items() if key not in TIMES}
    for path in sorted(out.glob("*/metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[f"{path.parent.name}/epochs"] = [
            {key: value for key, value in line.items() if key not in TIMES} for line in lines
        ]
    assert found
    return found
