"""Checkpoints as files: whole or not there, two of them, and used only if they are what was written."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.run import checkpoint, loop
from fasthebb_cli.run.checkpoint import find_checkpoint, load_checkpoint, remove_checkpoints, save_checkpoint
from fasthebb_cli.run.record import open_log
from tests.conftest import Ran, lacking
from tests.disturbed import outcome, start, undisturbed
from tests.lives import Moment


def state(epoch: int, size: int = 1000) -> dict[str, Any]:
    return dict.fromkeys(checkpoint.KEYS, 0) | {
        "fingerprint": "f",
        "epoch": epoch,
        "network": {"weight": torch.arange(size)},
        "records": [{"epoch": k + 1, "loss": 0.5} for k in range(epoch)],
        "random": [{}],
    }


def saved(folder: Path, *epochs: int) -> list[Path]:
    for epoch in epochs:
        save_checkpoint(folder / "checkpoint.pt", state(epoch))
    return [folder / "checkpoint.pt", folder / "checkpoint.previous.pt"]


def load(folder: Path) -> tuple[int | None, list[str]]:
    warnings: list[str] = []
    found = find_checkpoint(folder, warnings.append)
    return (None if found is None else load_checkpoint(found, "f")["epoch"]), warnings


def flip(path: Path) -> None:
    """One bit in the middle of the tensor, which torch.load does not notice."""
    content = bytearray(path.read_bytes())
    at = content.index(torch.arange(1000).numpy().tobytes()) + 4001
    content[at] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE = pytest.mark.parametrize("damage", [flip, halve, empty])


def test_a_log_that_leads_elsewhere_or_is_a_pipe_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "victim.txt").write_text("mine")
    for name in ("link", "pipe"):
        (tmp_path / name).mkdir()
    (tmp_path / "link" / "log.txt").symlink_to(tmp_path / "victim.txt")
    os.mkfifo(tmp_path / "pipe" / "log.txt")
    for name in ("link", "pipe"):
        open_log(tmp_path / name).info("a line")
        assert (tmp_path / name / "log.txt").read_text().endswith("a line\n")
    assert (tmp_path / "victim.txt").read_text() == "mine"


def test_the_last_two_are_kept_and_the_newest_is_used(tmp_path: Path) -> None:
    assert load(tmp_path) == (None, [])
    saved(tmp_path, 1, 2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.previous.pt", "checkpoint.pt"]
    assert load(tmp_path) == (3, [])
    (tmp_path / "checkpoint.pt").unlink()  # as when it is killed between the two renames
    assert load(tmp_path) == (2, [])
    saved(tmp_path, 4)
    remove_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []


@DAMAGE
def test_a_damaged_one_gives_way_to_the_one_before(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    newest, previous = saved(tmp_path, 1, 2)
    damage(newest)
    epoch, warnings = load(tmp_path)
    assert epoch == 1
    assert len(warnings) == 1
    assert f"{newest} is damaged" in warnings[0]
    assert previous.exists()
    saved(tmp_path, 3)
    (tmp_path / "checkpoint.pt").unlink()
    assert load(tmp_path) == (1, [])  # the damaged one did not take its place


@pytest.mark.parametrize(
    "forged",
    [
        {"epoch": 10**9},
        {"epoch": -5},
        {"seconds": "zz"},
        {"records": "zz"},
        {"step": -1},
        {"random": []},
        {"random": {}},
    ],
)
def test_one_that_says_what_can_not_be_is_damaged(tmp_path: Path, forged: dict[str, Any]) -> None:
    save_checkpoint(tmp_path / "checkpoint.pt", state(3) | forged)
    with pytest.raises(InputError, match=r"checkpoint.pt is damaged \(.*force=true"):
        load(tmp_path)


def test_a_pipe_in_its_place_gives_way_too(tmp_path: Path) -> None:
    newest, _ = saved(tmp_path, 1, 2)
    newest.unlink()
    os.mkfifo(newest)
    assert load(tmp_path)[0] == 1


@DAMAGE
def test_two_damaged_ones_are_an_error_and_stay(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    paths = saved(tmp_path, 1, 2)
    for path in paths:
        damage(path)
    before = [path.read_bytes() for path in paths]
    with pytest.raises(InputError, match=r"checkpoint.pt is damaged, .*force=true"):
        load(tmp_path)
    assert [path.read_bytes() for path in paths] == before


def test_other_settings_and_other_files_are_named(tmp_path: Path) -> None:
    (newest, _) = saved(tmp_path, 1)
    with pytest.raises(InputError, match="belongs to other settings"):
        load_checkpoint(newest, "g")
    for content, expected in (({"anything": 1}, "is not a checkpoint of fasthebb"), (Path, "can't be read")):
        torch.save(content, newest)
        with pytest.raises(InputError, match=expected):
            load_checkpoint(newest, "f")
        with pytest.raises(InputError, match="is damaged"):
            load(tmp_path)


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    left = tmp_path / ".checkpoint.pt.a1b2c3"
    left.write_bytes(b"half")
    assert load(tmp_path) == (1, [])
    assert not left.exists()


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A small file system of its own, where this machine lets us have one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True)
    if done.returncode != 0:
        lacking("mounting a file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_leaves_the_last_good_one(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-o", "size=512k") as disk:
        saved(disk, 1, 2)
        with pytest.raises(RunError, match=r"can't write .*checkpoint.pt: .*No space left .*last checkpoint is kept"):
            save_checkpoint(disk / "checkpoint.pt", state(3, size=100_000))
        assert load(disk) == (2, [])
        assert len(list(disk.iterdir())) == 2


def test_a_read_only_directory_is_named_and_leaves_the_last_good_one(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk") as disk:
        saved(disk, 1, 2)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(RunError, match=r"can't write .*checkpoint.pt: .*Read-only .*last checkpoint is kept"):
            saved(disk, 3)
        assert load(disk) == (2, [])


@pytest.mark.slow
def test_a_run_on_a_full_disk_ends_in_one_line_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    settings = ("stages=[pretrain]",)
    with mounted(tmp_path / "disk", "-o", "size=20m") as disk:
        full = start(disk, 0.0, *settings, moment=Moment(4, "pretrain", signal=None))
        full.reached()
        with contextlib.suppress(OSError), (disk / "other").open("wb", buffering=0) as other:
            while True:
                other.write(bytes(10_000))
        full.go_on()
        assert full.wait() == 1, full.text()
        assert "No space left on device" in full.text().splitlines()[-1]
        assert "Traceback" not in full.text()
        (disk / "other").unlink()
        again = start(disk, 1000, *settings)
        assert again.wait() == 0, again.text()
        assert "resumed at epoch 1, step 4" in again.text()
        assert outcome(disk) == undisturbed(*settings)


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "least", "most"), [(0.0, 5, 30), (40.0, 1, 1)], ids=["fast disk", "slow disk"])
def test_one_that_takes_long_to_write_comes_less_often(
    command: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, seconds: float, least: int, most: int
) -> None:
    """So that writing takes a twentieth of the time at most. By this clock it is a second later at each look."""
    now, saves = [0.0], []

    def look() -> float:
        now[0] += 1
        return now[0]

    def save(path: Path, state: dict[str, Any]) -> None:
        now[0] += seconds
        saves.append(state["step"])

    monkeypatch.setenv("FASTHEBB_SAVE_SECONDS", "3")
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=look))
    monkeypatch.setattr(loop, "save_checkpoint", save)
    assert command("pretrain", "pretrain.epochs=12", "model.width=0.01").code == 0
    assert least <= len(saves) <= most, saves
