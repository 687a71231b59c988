"""`fasthebb runs` and `fasthebb compare`: states, tables at two widths, and differences."""

import subprocess
import sys
from pathlib import Path

import pytest

from fasthebb_cli.console.formats import pace
from fasthebb_cli.report.directories import find_directories
from tests.report.made import call, make_run, make_stage

HOLD = """
import sys
from pathlib import Path
from fasthebb_cli.run.directory import locked
with locked(Path(sys.argv[1])):
    sys.stdout.write("held\\n")
    sys.stdout.flush()
    sys.stdin.read()
"""


def test_they_start_without_what_only_a_report_needs() -> None:
    code = (
        "import sys, fasthebb_cli.report.overview, fasthebb_cli.report.comparison; "
        "sys.exit(bool({'torch', 'scipy', 'numpy', 'matplotlib', 'jinja2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def unfinished(runs: Path, name: str) -> Path:
    directory = runs / name
    directory.mkdir(parents=True)
    (directory / "fingerprint.json").write_text('{"kind": "finetune", "rule.name": "hpca", "seed": 0}')
    return directory


def test_states(tmp_path: Path) -> None:
    make_run(tmp_path, "none", 0.1, 0, 0.5)
    running, failed, stale, damaged = (unfinished(tmp_path, name) for name in ("running", "failed", "stale", "damaged"))
    for directory in (running, failed):
        (directory / "error.txt").write_text("out of memory\n")
    (stale / "checkpoint.pt").touch()
    (damaged / "results.json").write_text("{")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(running)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        found = {item.path.name: item for item in find_directories([tmp_path])}
        process.communicate("")
    assert (found["running"].state, found["failed"].state, found["stale"].state) == ("running", "failed", "stale")
    assert "process" in found["running"].note
    assert found["failed"].note == "out of memory"
    assert found["stale"].note == "the same command goes on"
    assert found["damaged"].state == "failed"
    assert found["damaged"].note.startswith("damaged: results.json: it is no JSON (")
    assert {item.path.name: item.state for item in find_directories([tmp_path])}["running"] == "failed"


def test_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    directory = make_run(tmp_path / "runs", "hpca", 0.1, 0, 0.875)
    unfinished(tmp_path / "runs", "left-a0b1c2d3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    code, printed, _ = call(capsys, "runs")
    assert code == 0
    row = next(line for line in printed.splitlines() if str(directory.relative_to(tmp_path)) in line)
    assert row.split()[:9] == ["finished", "evaluate", "digits", "conv6", "hpca", "10", "%", "0", "87.5"]
    assert printed.splitlines()[-1] == "4 stages: 3 finished, 1 stale"


def test_runs_show_what_a_closed_form_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, "none", 0.1, 0, 0.5, closed_form=True)
    make_run(tmp_path, "none", 0.1, 0, 0.5)
    chosen = "kernel, sharpness=3, ridge=0.03 (expects 90.0 %)"
    monkeypatch.setenv("COLUMNS", "400")
    code, printed, _ = call(capsys, "runs", tmp_path)
    assert code == 0
    (row,) = [line for line in printed.splitlines() if chosen in line]
    assert "closed_form-" in row
    (row,) = [line for line in printed.splitlines() if "/finetune-" in line]
    assert " 6,000 " in row  # images that went through a backward pass
    monkeypatch.setenv("COLUMNS", "80")
    code, printed, _ = call(capsys, "runs", tmp_path)
    (line,) = [line for line in printed.splitlines() if chosen in line]
    assert line.startswith("…")
    assert max(map(len, printed.splitlines())) <= 80


def test_compare_shows_what_a_closed_form_chose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "none", 0.1, 0, 0.5, closed_form=True)
    make_run(tmp_path, "none", 0.1, 0, 0.5)
    (closed,), (tuned,) = tmp_path.glob("closed_form-*"), tmp_path.glob("finetune-*")
    code, printed, _ = call(capsys, "compare", closed, tuned)
    assert code == 0
    rows = {tuple(line.split()[:-3]): line.split()[-3:] for line in printed.splitlines()}
    assert ["fine-tuning", "closed", "form", "backprop"] in [line.split() for line in printed.splitlines()]
    assert rows["backward", "passes"] == ["0", "6,000", "+6,000"]
    assert rows["expected", "top-1", "%"] == ["90.0", "–", "–"]
    assert ["chosen", "classifier", "kernel", "–"] in [line.split() for line in printed.splitlines()]


def test_runs_of_one_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "none", 0.1, 0, 0.5)
    directory = unfinished(tmp_path, "left")
    (directory / "error.txt").write_text("out of memory\n")
    code, printed, _ = call(capsys, "runs", tmp_path, "state=failed")
    assert code == 0
    assert "out of memory" in printed
    assert "evaluate" not in printed
    assert printed.splitlines()[-1] == "3 stages: 2 finished, 1 failed"


def test_runs_in_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for fraction in (0.1, 1):
        directory = make_run(tmp_path, "hpca", fraction, 0, 0.9)
    monkeypatch.setenv("COLUMNS", "80")
    _, printed, _ = call(capsys, "runs", tmp_path)
    assert max(map(len, printed.splitlines())) <= 80
    assert f"…{directory.name[-8:]}" in printed


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = make_run(tmp_path, "hpca", 0.01, 0, 0.8), make_run(tmp_path, "swta", 0.1, 0, 0.75)
    code, printed, _ = call(capsys, "compare", first, second)
    assert code == 0
    lines = [line.split() for line in printed.splitlines()]
    assert ["rule.whitening", "null", "0.1"] in lines
    assert ["label_fraction", "0.01", "0.1"] in lines
    assert ["top-1", "%", "80.0", "75.0", "-5.0"] in lines
    assert ["labels", "30", "300", "+270"] in lines
    assert not any("dataset.size" in line for line in lines)


def test_a_run_goes_by_the_digits_that_a_narrow_table_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (make_run(tmp_path / "runs", rule, 0.1, 0, 0.5) for rule in ("hpca", "swta"))
    monkeypatch.chdir(tmp_path)
    code, printed, _ = call(capsys, "compare", first.name[-8:], second.name[-8:])
    assert code == 0
    assert printed.splitlines()[0] == f"A  runs/{first.name} (finished)"
    code, _, error = call(capsys, "compare", first.name[-8:], "00000000")
    assert code == 2
    assert "00000000: no directory in runs/ ends in these digits; give the path of one" in error
    (tmp_path / f"runs/other-{first.name[-8:]}").mkdir()
    code, _, error = call(capsys, "compare", first.name[-8:], second.name[-8:])
    assert (code, "2 directories in runs/ end in these digits" in error) == (2, True)


def test_paces() -> None:
    assert [pace(rate) for rate in (1234.5, 9.96, 9.94, 0.25, 0.041)] == ["1,234", "10", "9.9", "0.25", "0.041"]


def test_compare_looks_at_the_stages_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = {"seed": 0, "rule.name": "hpca"}
    directories = []
    for lr in (0.1, 0.2):
        _, previous = make_stage(tmp_path, "pretrain", shared | {"previous": None, "pretrain.lr": lr}, {})
        directories.append(make_stage(tmp_path, "finetune", shared | {"previous": previous}, {})[0])
    _, printed, _ = call(capsys, "compare", *directories)
    assert ["pretrain.lr", "0.1", "0.2"] in [line.split() for line in printed.splitlines()]


def test_compare_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = make_run(tmp_path, "none", 0.1, 0, 0.5)
    _, printed, _ = call(capsys, "compare", directory, directory / "model.safetensors")
    assert "The settings are the same" in printed


def test_compare_with_one_that_is_not_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = call(capsys, "compare", make_run(tmp_path, "none", 0.1, 0, 0.5), unfinished(tmp_path, "left"))
    assert code == 0
    assert "stale, no results yet" in printed


def test_probes_are_listed_and_compared_by_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    probes = [
        make_stage(
            tmp_path, "probe", {"seed": seed, "rule.name": "hpca"},
            {"layers": {"conv1": {"top1": 0.5, "knn": 0.25}, "conv2": {"top1": top1}}},
        )[0]
        for seed, top1 in ((0, 0.75), (1, 0.625))
    ]  # fmt: skip
    _, printed, _ = call(capsys, "runs", tmp_path)
    assert "conv2 75.0" in printed
    _, printed, _ = call(capsys, "compare", *probes)
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "conv1, top-1 % 50.0 50.0 +0.0" in lines
    assert "conv1, knn % 25.0 25.0 +0.0" in lines
    assert "conv2, top-1 % 75.0 62.5 -12.5" in lines


def test_accuracies_on_other_images_are_not_subtracted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = make_run(tmp_path, "hpca", 0.1, 0, 0.8), make_run(tmp_path, "hpca", 0.1, 1, 0.5, samples=77)
    _, printed, _ = call(capsys, "compare", first, second)
    assert ["top-1", "%", "80.0", "50.0", "other", "images"] in [line.split() for line in printed.splitlines()]


def test_labels_looked_at_are_told_at_every_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, "none", 0.1, 0, 0.9, labels_validation=300)
    for columns, told in (("80", "300+300v"), ("160", "300 + 300 val.")):
        monkeypatch.setenv("COLUMNS", columns)
        _, printed, _ = call(capsys, "runs", tmp_path)
        assert told in printed
