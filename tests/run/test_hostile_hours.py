"""What a machine does to a run: no locks, other permissions, what a kill left, a full disk behind the output."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.prepare.archives import members_of
from fasthebb_cli.run.directory import locked, remove_begun, write_text
from tests.conftest import SMALL, Ran
from tests.data.images import save

Command = Callable[..., Ran]
FASTHEBB = [sys.executable, "-m", "fasthebb_cli"]


def test_a_file_system_without_locks_is_named_and_can_be_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lockf(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    refused = pytest.raises(RunError, match=r"has no locks \(No locks available\).*FASTHEBB_UNLOCKED=1")
    with refused, locked(tmp_path / "stage"):
        pass
    monkeypatch.setenv("FASTHEBB_UNLOCKED", "1")
    with locked(tmp_path / "stage"):
        pass


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_files_have_the_permissions_that_the_user_gives(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a.txt", "a")
        with locked(tmp_path / "stage"):
            pass
    finally:
        os.umask(before)
    for path in (tmp_path / "a.txt", tmp_path / ".locks" / "stage.lock"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_what_a_killed_writer_left_goes_at_the_next_start_and_nothing_else(tmp_path: Path) -> None:
    for name in (
        ".results.json.ab12cd_9.fasthebb",
        ".18.png.xxxxxxxx.fasthebb",
        "results.json",
        ".hidden",
        "x.json.abcdefgh",
    ):
        (tmp_path / name).touch()
    remove_begun(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "results.json", "x.json.abcdefgh"]


@pytest.mark.slow
def test_a_full_disk_behind_the_output_does_not_stop_a_run(tmp_path: Path) -> None:
    words = [*SMALL, "stages=[pretrain]", "pretrain.epochs=1", f"out={tmp_path / 'runs'}"]
    with open("/dev/full", "w") as full:
        ran = subprocess.run([*FASTHEBB, "train", *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=250)
        assert ran.returncode == 0, ran.stderr
        assert ran.stderr == "warning: can't write the output (No space left on device); going on without it\n"
        assert len([*(tmp_path / "runs").glob("*/results.json")]) == 1
        for verb in (["runs", str(tmp_path / "runs")], ["--help"], ["--version"]):
            ran = subprocess.run([*FASTHEBB, *verb], stdout=full, stderr=subprocess.PIPE, text=True, timeout=250)
            assert ran.returncode == 1
            assert ran.stderr.count("\n") == 1


def wait_for_line(process: "subprocess.Popen[str]", words: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"it ended before it said {words!r}")


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [False, True], ids=["a closed terminal", "under nohup"])
def test_a_terminal_that_closes_saves_the_run_unless_it_is_to_go_on(tmp_path: Path, ignored: bool) -> None:
    words = [*SMALL, "stages=[pretrain]", "pretrain.epochs=400", "model.width=0.1", f"out={tmp_path / 'runs'}"]

    def prepare() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    process = subprocess.Popen(
        [*FASTHEBB, "train", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=prepare
    )
    wait_for_line(process, "pretrain epoch ")
    process.send_signal(signal.SIGHUP)
    if ignored:
        wait_for_line(process, "pretrain epoch ")
        process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=250)
    assert process.returncode == 130
    assert "stopped and saved at" in rest


def test_a_tar_that_is_cut_between_two_members_is_damaged(tmp_path: Path) -> None:
    for k in range(3):
        save(tmp_path / f"{k}.png", k)
    whole = tmp_path / "whole.tar"
    with tarfile.open(whole, "w") as archive:
        for k in range(3):
            archive.add(tmp_path / f"{k}.png", f"{k}.png")
    with tarfile.open(whole) as archive:
        ends = [member.offset_data + -(-member.size // 512) * 512 for member in archive.getmembers()]
    with members_of(whole) as members:
        assert len(members) == 3
    for end in ends:
        cut = tmp_path / "cut.tar"
        cut.write_bytes(whole.read_bytes()[:end])
        with pytest.raises(InputError, match=r"cut\.tar: is damaged: it is cut"), members_of(cut):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("words", ["train --cfg job", "train --info config", "cells train seed=0,1", "train --help"])
def test_an_output_that_is_full_or_closed_costs_one_line(words: str) -> None:
    command = f"{sys.executable} -m fasthebb_cli {words}"
    full = subprocess.run(["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True)
    told = "warning: can't write the output (No space left on device); going on without it\n"
    assert (full.returncode, full.stderr) == (1, told)
    closed = subprocess.run(["bash", "-o", "pipefail", "-c", f"{command} | true"], capture_output=True, text=True)
    assert (closed.returncode, closed.stderr) == (0, "")
