"""Directories of runs that were damaged or forged: each is named with the reason, and the others are still shown."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.report.made import call, make_run

pytestmark = pytest.mark.slow

BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join([f'*{chr(97 + k)}'] * 9)}]\n" for k in range(12)
)


def with_json(file: str, **changes: Any) -> Callable[[Path], None]:
    """Changes keys of a JSON file; None as the value of `drop` names a key to remove."""

    def damage(directory: Path) -> None:
        path = directory / file
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value != "drop"}))

    return damage


def with_text(file: str, content: bytes) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        (directory / file).write_bytes(content)

    return damage


def with_pipe(file: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        (directory / file).unlink()
        os.mkfifo(directory / file)

    return damage


RESULTS, FINGERPRINT = "results.json", "fingerprint.json"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a missing key": (with_json(RESULTS, seconds="drop"), "results.json: seconds must be a number, not None"),
    "a text for a number": (with_json(RESULTS, top1="0.8"), "results.json: top1 must be a number or null, not '0.8'"),
    "per cents": (with_json(RESULTS, top1=80.0), "results.json: top1 must be between 0 and 1, not 80.0"),
    "below 0": (with_json(RESULTS, labels_train=-3), "results.json: labels_train must be between 0 and inf, not -3"),
    "not finite": (with_json(RESULTS, seconds=float("inf")), "results.json: seconds must be a number, not inf"),
    "versions": (with_json(RESULTS, versions=["1"]), "results.json: versions must be a mapping, not ['1']"),
    "layers": (with_json(RESULTS, layers={"a": 1}), "results.json: layers must be a mapping or null"),
    "a ragged confusion": (with_json(RESULTS, confusion=[[1, 2], [3]]), "confusion must be 2 rows of 2 counts"),
    "other classes": (with_json(RESULTS, confusion=[[1]], classes=["a", "b"]), "confusion must be 2 rows of 2 counts"),
    "no mapping": (with_text(RESULTS, b"[1]"), "results.json: it must be a mapping, not [1]"),
    "null": (with_text(RESULTS, b"null"), "results.json: it must be a mapping, not None"),
    "null for settings": (with_text(FINGERPRINT, b"null"), "fingerprint.json: it must be a mapping, not None"),
    "a number": (with_text(RESULTS, b"3"), "results.json: it must be a mapping, not 3"),
    "no JSON": (with_text(RESULTS, b"{"), "results.json: it is no JSON"),
    "no UTF-8": (with_text(RESULTS, b'{"a": "\xff"}'), "results.json: it is no JSON ('utf-8' codec can't decode"),
    "deep": (with_text(RESULTS, b"[" * 100_000), "results.json: it is nested too deeply"),
    "rather deep": (with_json(RESULTS, extra=[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]), "it is nested too deeply"),
    "a pipe": (with_pipe(RESULTS), "results.json: it is no regular file"),
    "a list for a kind": (with_json(FINGERPRINT, kind=["evaluate"]), "fingerprint.json: kind must be a text"),
    "a text for a seed": (with_json(FINGERPRINT, seed="0"), "fingerprint.json: seed must be a whole number or null"),
    "a text for a fraction": (
        with_json(FINGERPRINT, label_fraction="x"), "fingerprint.json: label_fraction must be a number or null"
    ),
    "a text for a width": (with_json(FINGERPRINT, **{"model.width": "w"}), "model.width must be a number or null"),
    "a number for an ancestor": (with_json(FINGERPRINT, previous=3), "previous must be a text or null, not 3"),
    "a count that no type holds": (
        with_json(RESULTS, confusion=[[10**30, 0], [0, 1]]), "confusion must be a list or null, not [[1000000000"
    ),
    "more images than there are": (with_json(RESULTS, confusion=[[10**13, 0], [0, 1]]), "confusion has a count above"),
    "an empty fingerprint": (with_text(FINGERPRINT, b""), "fingerprint.json: it is no JSON"),
    "a pipe for it": (with_pipe(FINGERPRINT), "fingerprint.json: it is no regular file"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_directory_is_named_and_the_others_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    damage, message = DAMAGES[case]
    for seed in range(2):
        make_run(tmp_path / "runs", "none", 0.1, seed, 0.8)
    bad = make_run(tmp_path / "runs", "none", 0.1, 2, 0.8)
    damage(bad)
    code, out, err = call(capsys, "runs", tmp_path / "runs")
    assert (code, err) == (0, "")
    assert "6 stages: 5 finished, 1 failed" in out
    assert message in out
    code, out, err = call(capsys, "report", tmp_path / "runs", f"out={tmp_path / 'report'}")
    assert (code, err) == (0, "")
    assert "(n=2)" in out
    assert f"{bad.name}: damaged: " in (tmp_path / "report" / "report.md").read_text()
    code, out, err = call(capsys, "compare", bad, bad)
    assert (code, err) == (0, "")
    assert message in out


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_a_report_reads_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    """A stage whose weights came from a file names their digest. Results know those of their own."""
    runs = [make_run(tmp_path / "runs", "none", 0.1, seed, 0.8) for seed in range(2)]
    with_json(FINGERPRINT, previous="0" * 32)(runs[1])
    for model in (run / "model.safetensors" for run in runs):
        model.unlink(missing_ok=True)
        {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: path.symlink_to("/dev/zero")}[what](model)
    code, out, err = call(capsys, "report", tmp_path / "runs", f"out={tmp_path / 'report'}")
    assert (code, err) == (0, ""), out


def test_another_stages_files_in_a_directory_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "runs", "none", 0.1, 0, 0.8)
    moved = make_run(tmp_path / "runs", "none", 0.1, 1, 0.9)
    moved.rename(moved.with_name("evaluate-01234567"))
    code, out, _ = call(capsys, "runs", tmp_path / "runs")
    assert code == 0
    assert "3 finished, 1 failed" in out
    assert "results.json: it is of another directory's stage" in out
    code, out, _ = call(capsys, "report", tmp_path / "runs", f"out={tmp_path / 'report'}")
    assert code == 0
    assert "(n=1)" in out


def test_metrics_are_read_up_to_what_is_damaged_and_the_report_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "runs", "hpca", 0.1, 0, 0.8)
    for directory, line in zip(sorted((tmp_path / "runs").glob("*e*")), ('{"epoch": "x"}', "[" * 9999), strict=False):
        with (directory / "metrics.jsonl").open("a") as file:
            file.write(line + "\n")
    code, _, err = call(capsys, "report", tmp_path / "runs", f"out={tmp_path / 'report'}")
    assert (code, err) == (0, "")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "metrics.jsonl can't be read after line 2: it is nested too deeply" in text
    assert "metrics.jsonl can't be read after line 0: epoch must be a whole number, not 'x'" in text


@pytest.mark.parametrize("content", [BOMB, "[" * 9999, "- *", "\x00", "kind: [1", "a: b\n" * 50_000], ids=range(6))
def test_a_configuration_that_can_not_be_read_costs_the_command_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    for seed in range(2):
        (make_run(tmp_path / "runs", "none", 0.1, seed, 0.8) / "config.yaml").write_text(content)
    code, out, err = call(capsys, "report", tmp_path / "runs", f"out={tmp_path / 'report'}")
    assert (code, err) == (0, "")
    assert "80.0 ± 0.0" in out


def test_nothing_that_files_hold_reaches_the_terminal_as_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;title\x07\x1b[2J\x9b31m\ud800"
    directory = make_run(tmp_path / "runs", "none", 0.1, 0, 0.8)
    with_json(FINGERPRINT, **{"dataset.name": evil, "evaluate.extra": evil})(directory)
    with_json(RESULTS, dataset=evil, finished=evil, device=evil)(directory)
    failed = tmp_path / "runs" / "failed"
    failed.mkdir()
    (failed / FINGERPRINT).write_text('{"kind": "evaluate"}')
    (failed / "error.txt").write_text(evil[:-1])
    other = make_run(tmp_path / "runs", "none", 0.1, 1, 0.8)
    for words in (["runs", tmp_path / "runs"], ["compare", directory, other], ["compare", failed, other],
                  ["report", tmp_path / "runs", f"out={tmp_path / 'report'}"]):  # fmt: skip
        code, out, err = call(capsys, *words)
        assert (code, err) == (0, "")
        assert not {"\x1b", "\x9b", "\x07"} & {*out}
    for path in (tmp_path / "report").iterdir():
        assert not {"\x1b", "\x9b", "\x07"} & {*path.read_text(encoding="utf-8")}
    assert "\x1b" not in call(capsys, "runs", tmp_path / "\x1b[2Jnowhere")[2]


def test_names_of_classes_are_text_and_no_formula(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [r"$\frac{$", "=1+1", "<script>", "猫", "a|b", "$x$"]
    confusion = [[3 if a == b else 1 for a in range(6)] for b in range(6)]
    for seed in range(2):
        make_run(tmp_path / "runs", "=hpca", 0.1, seed, 0.8, classes=names, confusion=confusion)
        make_run(tmp_path / "runs", "none", 0.1, seed, 0.7)
    code, _, err = call(capsys, "report", tmp_path / "runs", f"out={tmp_path / 'report'}")
    assert (code, err) == (0, "")
    page = (tmp_path / "report" / "report.html").read_text()
    assert r"$\frac{$" in page
    assert "<script>" not in page.partition("<body")[2]
    rows = (tmp_path / "report" / "report.csv").read_text().splitlines()
    assert any("'=hpca" in row for row in rows)
    assert not any(",=hpca" in row for row in rows)
