"""Small runs give the numbers that were recorded: near everywhere, to the last bit on a machine of the same kind.

`python -m tests.golden.record` records them, those of a new rule or of a new way to fine-tune among them.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.golden.freeze import RUNS, WEIGHTS, alone, by_two, differing, machine, read

RECORDED = read(WEIGHTS)
# AVX2 kernels in place of AVX512 change them by a tenth of that at most, but for norms of biases that hardly moved
NORM, LOSS = 1e-3, 1e-2  # relative
TINY = 1e-4  # absolute, of norms

pytestmark = pytest.mark.slow


def agree(recorded: dict[str, Any], found: dict[str, Any]) -> None:
    if RECORDED["machine"] == machine():
        assert differing(recorded, found) == []
    assert recorded.keys() == found.keys()
    for name, numbers in recorded.items():
        assert found[name].get("norms", {}) == pytest.approx(numbers.get("norms", {}), rel=NORM, abs=TINY), name
        if numbers["loss"] is not None:
            assert found[name]["loss"] == pytest.approx(numbers["loss"], rel=LOSS), name


@pytest.mark.parametrize("name", [name for name in RUNS if any(key.startswith(f"{name}: ") for key in RECORDED)])
def test_a_run_gives_the_numbers_that_were_recorded(name: str, tmp_path: Path) -> None:
    agree({key: value for key, value in RECORDED.items() if key.startswith(f"{name}: ")}, alone(name, tmp_path))


@pytest.mark.xdist_group("processes")
def test_runs_of_two_processes_give_the_numbers_that_were_recorded() -> None:
    agree({key: value for key, value in RECORDED.items() if ", by two: " in key}, by_two())
