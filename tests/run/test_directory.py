"""Two commands that want the same stage: a shared pre-training is waited for, the same cell is refused."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fasthebb_cli.console.view import View
from fasthebb_cli.errors import InputError
from fasthebb_cli.run.directory import locked
from tests.conftest import Ran
from tests.disturbed import start
from tests.lives import Moment

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


@pytest.mark.slow
def test_a_lock_is_waited_for_and_dies_with_its_process(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    said: list[str] = []

    def on_wait(text: str) -> None:
        said.append(text)
        holder.kill()

    with locked(tmp_path / "stage", on_wait):
        assert len(said) == 1
        assert f"process {holder.pid}" in said[0]


@pytest.mark.slow
def test_the_same_cell_twice_and_another_cell_of_the_same_pretraining(
    command: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(tmp_path / "runs", 1000, moment=Moment(3, "pretrain", signal=None))
    first.reached()
    same = command("train", "label_fraction=0.2")
    assert same.code == 2
    assert f"process {first.process.pid}" in same.err
    note = View.note
    said: list[str] = []

    def noted(view: View, text: str, *style: str) -> None:
        note(view, text, *style)
        if "waiting for it" in text:
            said.append(text)
            first.go_on()

    monkeypatch.setattr(View, "note", noted)
    other = command("train", "label_fraction=0.3")
    assert other.code == 0, other.err
    assert len(said) == 1
    assert f"process {first.process.pid}" in said[0]
    assert first.wait() == 0, first.text()
    assert first.text().count("pretrain: done") == 1
    assert "pretrain: done" not in other.out


@pytest.mark.slow
@pytest.mark.parametrize("words", [["finetune=closed_form"], ["finetune=backprop", "finetune.epochs=1"]])
def test_what_a_new_directory_is_told_to_differ_in_is_what_was_typed(
    command: Callable[..., Ran], words: list[str]
) -> None:
    """And not the settings that the stage does not read."""
    small = ("dataset=digits", "model.width=0.03", "pretrain.epochs=1", "gpu=cpu")
    command("train", *words, *small, "seed=0", small=False)
    ran = command("train", *words, *small, "seed=1", small=False)
    said = re.findall(r"it differs in (.*)", ran.out + ran.err)
    assert len(said) >= 3
    for text in said:
        keys = [part.split()[0] for part in re.sub(r"\d+ images [0-9a-f]+", "images", text).split(", ")]
        assert set(keys) <= {"seed", "dataset.train", "dataset.validation", "dataset.test"}, text
        assert "seed" in keys
