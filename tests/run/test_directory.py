"""Two commands that want the same stage: a shared pre-training is waited for, the same cell is refused."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fasthebb_cli.errors import InputError
from fasthebb_cli.run.directory import locked
from tests.disturbed import start

HOLD = "import sys; from pathlib import Path; from fasthebb_cli.run.directory import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock of tmp_path/stage until its standard input closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "stage")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_lock_held_elsewhere_is_refused_naming_host_and_process(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    with pytest.raises(InputError, match=f"process {holder.pid}; wait for it or stop it"), locked(tmp_path / "stage"):
        pass


def test_a_lock_is_waited_for_and_dies_with_its_process(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    said: list[str] = []

    def on_wait(text: str) -> None:
        said.append(text)
        holder.kill()

    with locked(tmp_path / "stage", on_wait):
        assert len(said) == 1
        assert f"process {holder.pid}" in said[0]


@pytest.mark.slow
def test_the_same_cell_twice_and_another_cell_of_the_same_pretraining(tmp_path: Path) -> None:
    first = start(tmp_path, 1000, "pretrain.epochs=400")
    while not list(tmp_path.glob("*pretrain*/metrics.jsonl")):
        assert first.poll() is None, first.communicate()[0]
    same = start(tmp_path, 1000, "pretrain.epochs=400")
    text = same.communicate()[0]
    assert same.returncode == 2, text
    assert f"process {first.pid}" in text
    other = start(tmp_path, 1000, "pretrain.epochs=400", "label_fraction=0.3")
    assert other.stdout is not None
    line = ""
    while "waiting for it" not in line:
        line = other.stdout.readline()
        assert line, "ended without waiting"
    assert f"process {first.pid}" in line
    for process in (other, first):
        process.kill()
        process.communicate()
