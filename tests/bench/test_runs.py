"""`fasthebb bench run`: whole commands, their seconds and their accuracy; the programs beside which it measures."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fasthebb_cli import cli
from fasthebb_cli.bench.runs import read_plan, seconds_to
from fasthebb_cli.errors import InputError

ROOT = Path(__file__).parents[2]
PLANS = sorted((ROOT / "docs" / "benchmarks").glob("*_runs.yaml"))

PLAN = """
title: made up
levels: [50, 90]
before: ["python -c 'open(\\"{shared}/made-{seed}\\", \\"w\\")'"]
runs:
  ours:
    one: fasthebb train dataset=digits model.width=0.05 pretrain.epochs=1 label_fraction=0.2 seed={seed} out={out}/1
  other:
    fast: "python -c 'open(\\"{shared}/made-{seed}\\"); print(\\"{{\\\\\\"top1\\\\\\": 0.95}}\\")'"
    wrong: "python -c 'print(1); print(\\"{{\\\\\\"top1\\\\\\": 0.25}}\\")'"
"""


@pytest.mark.slow
def test_runs_are_timed_and_their_accuracy_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, found = tmp_path / "plan.yaml", tmp_path / "found.json"
    plan.write_text(PLAN)
    code = cli.run(["bench", "run", f"plan={plan}", "repeats=2", f"json={found}"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    result = json.loads(found.read_text())
    ours, other = result["runs"]["ours"]["one"], result["runs"]["other"]
    assert len(ours) == len(other["fast"]) == 2
    assert all(0.3 < point["top1"] <= 1 and point["seconds"] > 1 for point in ours)
    assert [point["top1"] for point in other["fast"] + other["wrong"]] == [0.95, 0.95, 0.25, 0.25]
    lines = captured.out.splitlines()
    (last,) = [line for line in lines if line.startswith("other ") and line.count(".") == 2 and "%" not in line]
    assert last.split()[1:] == [f"{seconds_to(90, other):.1f}"] * 2
    assert "made up" in captured.out


def test_seconds_to_an_accuracy() -> None:
    runs = {
        "fast": [{"seconds": 1.0, "top1": 0.5}, {"seconds": 3.0, "top1": 0.7}],
        "slow": [{"seconds": 9.0, "top1": 0.9}],
    }
    assert seconds_to(60, runs) == 2
    assert seconds_to(61, runs) == 9
    assert seconds_to(91, runs) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "bench run needs a plan"),
        ("title: [", "while parsing"),
        ("- 1", "must be a mapping"),
        ("title: a\nlevels: [1]\nrun: {}", "run is no key"),
        ("title: a\nlevels: 3\nruns: {a: {b: c}}", "levels is no key, or of the wrong type"),
        ("title: a\nlevels: [90]", "runs is missing"),
        ("title: a\nlevels: [900]\nruns: {a: {b: c}}", "levels must be accuracies"),
        ("title: a\nlevels: [90]\nruns: {a: [c]}", "runs.a must be a mapping"),
        ("title: a\nlevels: [90]\nruns: {a: {1: c}}", "runs.a must be a mapping"),
        ("title: a\nlevels: [true]\nruns: {a: {b: c}}", "levels must be accuracies"),
        ("title: a\nlevels: [90]\nruns: {a: {b: 'x {nothing}'}}", "'x {nothing}' is no command"),
        ("title: a\nlevels: [90]\nruns: {a: {b: ''}}", "'' is no command"),
        ("title: a\nlevels: [90]\nruns: {a: {b: 'x \"y'}}", "is no command .No closing quotation"),
        ("title: a\nlevels: [90]\nbefore: [3]\nruns: {a: {b: c}}", "'3' is no command"),
    ],
)
def test_bad_plans_are_named(text: str | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=expected):
        read_plan(None if text is None else str(path))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python -c 1", "told no accuracy"),
        ('python -c \'print("{{\\"top1\\": \\"high\\"}}")\'', "told no accuracy"),
        ("python -c 'import sys; sys.exit(\"broken\")'", "failed with exit code 1: broken"),
        ("no-such-program", "No such file"),
    ],
)
def test_a_run_that_fails_is_named(
    command: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps({"title": "a", "levels": [90], "runs": {"a": {"b": command}}}))
    assert cli.run(["bench", "run", f"plan={plan}", "repeats=1"]) == 1
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("plan", PLANS, ids=[plan.stem for plan in PLANS])
def test_a_plan_that_is_shipped_is_one_and_its_scripts_are_there(plan: Path) -> None:
    """The test of documents runs its own commands, smaller."""
    assert plan.read_text().startswith(f"# fasthebb bench run plan=docs/benchmarks/{plan.name} repeats=")
    for commands in read_plan(str(plan))["runs"].values():
        for command in commands.values():
            words = command.split()
            assert words[0] == "fasthebb" or (words[0] == "python" and (ROOT / words[1]).is_file())


@pytest.mark.slow
def test_scikit_learn_beside_learns_from_the_same_split(tmp_path: Path) -> None:
    split = tmp_path / "split.npz"
    words = ["dataset=digits", "label_fraction=0.3", "seed=1"]
    subprocess.run([sys.executable, str(ROOT / "scripts/peers/split.py"), str(split), *words], check=True)
    arrays = np.load(split)
    assert arrays["images"].shape == (1000, 32, 32, 3)
    assert (arrays["labels"] >= 0).sum() == 300
    assert len(arrays["test_images"]) == len(arrays["test_labels"]) == 497
    script = [sys.executable, str(ROOT / "scripts/peers/sklearn_patches.py"), str(split)]
    done = subprocess.run(
        [*script, "--clusters", "30", "--patches", "5000"], check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout.splitlines()[-1])["top1"] > 0.8
