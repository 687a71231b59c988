"""`fasthebb report`: numbers compared with calculations by hand, and pages that need no other file."""

import csv
import html
import json
import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from fasthebb_cli.report import tables
from fasthebb_cli.report.answers import answers, answers_on_learning, verdict, verdict_on_learning
from fasthebb_cli.report.chains import Index, name_methods
from fasthebb_cli.report.directories import find_directories, siblings
from fasthebb_cli.report.estimates import Estimate, estimate, paired_difference
from fasthebb_cli.report.grid import Grid, Method, build_grids
from fasthebb_cli.report.layers import accuracies_by_layer
from fasthebb_cli.report.plots import accuracy_figure, looks_of
from fasthebb_cli.stages.scores import Confusion
from tests.conftest import Ran, lacking
from tests.report.made import call, make_grid, make_run, make_stage


def grids_of(*places: Path) -> list[Grid]:
    directories = find_directories(places)
    return build_grids(directories, Index([*siblings(places), *directories]))


def means(by_layer: Mapping[str, Estimate]) -> dict[str, float]:
    return {layer: found.mean for layer, found in by_layer.items()}


def test_interval() -> None:
    found = estimate([0.80, 0.82, 0.84])
    assert found.mean == pytest.approx(0.82)
    assert found.half_width == pytest.approx(4.302653 * 0.02 / math.sqrt(3), rel=1e-5)  # t(0.975, 2) from a table
    assert found.n == 3
    assert estimate([0.5]).half_width is None


def test_paired_difference() -> None:
    """Differences 0.10, 0.08, 0.12: t = 0.1 / (0.02 / √3) = 8.66, for which p = 0.0131 at 2 degrees of freedom."""
    found = paired_difference({0: 0.80, 1: 0.82, 2: 0.84, 7: 0.1}, {2: 0.72, 1: 0.74, 0: 0.70})
    assert found is not None
    assert found.n == 3
    assert found.mean == pytest.approx(0.1)
    assert found.p == pytest.approx(0.01307, abs=1e-5)
    assert paired_difference({0: 0.5}, {1: 0.5}) is None


def test_what_was_measured_on_left_out_labels_is_counted_and_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for fold in range(2):
        make_run(
            tmp_path / "runs", "hpca", 0.1, 0, 0.5, content={"leave_out": f"{fold}/2"}, split="left_out", samples=7
        )
    words = ("report", tmp_path / "runs", f"out={tmp_path / 'report'}")
    code, _, errors = call(capsys, *words)
    assert (code, errors.count("\n")) == (2, 1)
    assert "those on left-out labels are shown by fasthebb advise" in errors
    make_grid(tmp_path / "runs")
    assert call(capsys, *words)[0] == 0
    (grid,) = grids_of(tmp_path / "runs")
    assert grid.title == "digits, test split of 1,000 images"
    for name in ("report.md", "report.html"):
        assert "2 measurements on left-out labels" in (tmp_path / "report" / name).read_text()


@pytest.mark.parametrize("others", [{0: 0.5}, {0: 0.5, 1: 0.6}])
def test_no_spread_no_significance(others: dict[int, float]) -> None:
    found = paired_difference({seed: value + 0.1 for seed, value in others.items()}, others)
    assert found is not None
    assert found.p is None
    assert not found.significant


def test_accuracy_table(tmp_path: Path) -> None:
    make_grid(tmp_path)
    (grid,) = grids_of(tmp_path)
    assert grid.title == "digits, test split of 1,000 images"
    assert [grid.labels(fraction) for fraction in grid.fractions] == [30, 300]
    (hpca, few_and_many), (none, scratch) = tables.accuracy_rows(grid, "top1")
    assert (hpca, none) == ("hpca", "none")
    few, many = few_and_many
    assert (few.text, few.n, few.best) == ("82.0 ± 5.0", 3, True)
    assert few.against == "+10.0, p = 0.013"
    assert few.significant
    assert (many.n, many.best, many.against) == (2, False, "−2.5, p = 0.13")
    assert scratch[1].best
    assert scratch[1].baseline


def test_difference_says_how_many_pairs(tmp_path: Path) -> None:
    make_grid(tmp_path)
    make_run(tmp_path, "hpca", 0.1, 5, 0.9)
    (grid,) = grids_of(tmp_path)
    assert tables.accuracy_rows(grid, "top1")[0][1][1].against.endswith("2 pairs")


def test_answers(tmp_path: Path) -> None:
    make_grid(tmp_path)
    (grid,) = grids_of(tmp_path)
    few, many = answers(grid)
    assert (few.verdict, many.verdict) == ("yes", "open")
    assert few.text.startswith("1 % (30 labels): hpca has 82.0 ± 5.0 %, none 72.0 ± 5.0 %: +10.0 points")
    assert "3 common seeds, significant (paired t test, p = 0.013)" in few.text
    assert "of 2 label budgets" in verdict([few, many]).lower()


def test_answers_are_about_hebbian_rules(tmp_path: Path) -> None:
    make_grid(tmp_path)
    for seed in (0, 1, 2):
        make_run(tmp_path, "vae", 0.01, seed, 0.95)
    (grid,) = grids_of(tmp_path)
    assert "hpca has 82.0" in answers(grid)[0].text
    assert dict(tables.accuracy_rows(grid, "top1"))["vae"][0].best


def make_closed_forms(runs: Path) -> None:
    """hpca and random filters with closed forms, hpca by backprop, and two variants from scratch, on three seeds."""
    for seed, (learnt, random) in enumerate([(0.90, 0.86), (0.92, 0.87), (0.94, 0.90)]):
        make_run(runs, "hpca", 0.01, seed, learnt, closed_form=True, calibration_error=0.02)
        make_run(runs, "random", 0.01, seed, random, closed_form=True, calibration_error=0.01)
        make_run(runs, "hpca", 0.01, seed, 0.75 + seed / 100)
        make_run(runs, "none", 0.01, seed, (0.70, 0.73, 0.73)[seed])
        make_run(runs, "none", 0.01, seed, 0.60, {"finetune.layer": "conv2"})


def test_closed_forms_are_compared_with_the_better_training_from_scratch(tmp_path: Path) -> None:
    make_closed_forms(tmp_path)
    make_run(tmp_path, "none", 0.01, 0, 0.99, closed_form=True)  # random filters: nothing is trained from scratch
    (grid,) = grids_of(tmp_path)
    names = [method.name for method in grid.methods]
    assert names[:3] == ["hpca, backprop", "hpca, closed form", "random, closed form"]
    assert set(names[3:]) == {"none, backprop", "none, backprop (finetune.layer=conv2)", "none, closed form"}
    (answer,) = answers(grid)
    assert answer.verdict == "yes"
    assert "hpca with closed form (best of 2) has 92.0 ± 5.0 %, none with backprop (best of 2) 72.0" in answer.text
    assert answer.text.endswith("They differ in fine-tuning, too.")


def test_what_learning_adds_to_random_filters_with_the_same_fine_tuning(tmp_path: Path) -> None:
    """Differences 0.04, 0.05, 0.04: t = 0.0433 / (0.00577 / √3) = 13, for which p = 0.0059 at 2 degrees of freedom."""
    make_closed_forms(tmp_path)
    for seed in (0, 1, 2):
        make_run(tmp_path, "random", 0.01, seed, 0.99, {"finetune.lr": 0.1})  # by backprop, but not as hpca
        make_run(tmp_path, "vae", 0.01, seed, 0.98, closed_form=True)
    (grid,) = grids_of(tmp_path)
    (found,) = answers_on_learning(grid)
    assert found.text == (
        "1 % (30 labels): hpca with closed form against random with closed form: "
        "learning of filters adds +4.3 points (p = 0.006, n = 3)."
    )
    assert found.verdict == "yes"
    assert (
        verdict_on_learning([found])
        == "Of 1 comparison with random filters, learnt filters are significantly better in 1."
    )


@pytest.mark.parametrize(
    ("random", "verdicts", "text"),
    [
        ([0.95, 0.962], ["no"], "adds −5.1 points"),
        ([0.89, 0.92], ["open"], "adds ±0.0 points"),
        ([0.89], ["untold"], "adds +1.0 points (no test, n = 1)"),
        ([], [], ""),
    ],
)
def test_learning_may_add_nothing(tmp_path: Path, random: list[float], verdicts: list[str], text: str) -> None:
    for seed, learnt in enumerate([0.90, 0.91]):
        make_run(tmp_path, "hpca", 0.01, seed, learnt)
    for seed, top1 in enumerate(random):
        make_run(tmp_path, "random", 0.01, seed, top1)
    found = answers_on_learning(grids_of(tmp_path)[0])
    assert [answer.verdict for answer in found] == verdicts
    assert all(text in answer.text for answer in found)


def test_random_filters_are_a_control_and_no_hebbian_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        make_run(tmp_path / "runs", "random", 0.01, seed, 0.9 + seed / 100)
        make_run(tmp_path / "runs", "hpca", 0.01, seed, 0.8)
        make_run(tmp_path / "runs", "none", 0.01, seed, 0.7)
    (answer,) = answers(grids_of(tmp_path / "runs")[0])
    assert "hpca has 80.0" in answer.text
    code, printed, _ = call(capsys, "report", tmp_path / "runs", f"out={tmp_path}")
    assert code == 0
    assert "# hpca against random filters and training from scratch on digits" in (tmp_path / "report.md").read_text()
    for text in (printed, (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()):
        assert "learnt filters are significantly worse in 1" in " ".join(text.split())


def test_backward_passes_and_calibration_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_closed_forms(tmp_path / "runs")
    make_run(tmp_path / "runs", "none", 0.1, 0, 0.9)
    (grid,) = grids_of(tmp_path / "runs")
    passes = {row["method"]: row["backward passes"] for row in tables.time_rows(grid)}
    assert passes["hpca, closed form"] == passes["random, closed form"] == "0"
    assert passes["hpca, backprop"] == "600"
    assert passes["none, backprop"] == "600 to 6,000"
    rows = dict(tables.calibration_rows(grid))
    assert {name: cells[0].text for name, cells in rows.items()} == {
        "hpca, closed form": "2.0 ± 0.0", "random, closed form": "1.0 ± 0.0",
    }  # fmt: skip
    assert [name for name, cells in rows.items() if cells[0].best] == ["random, closed form"]
    assert call(capsys, "report", tmp_path / "runs", f"out={tmp_path}")[0] == 0
    for name in ("report.md", "report.html"):
        assert "Calibration error" in (tmp_path / name).read_text()
        assert "600 to 6,000" in (tmp_path / name).read_text()
    with (tmp_path / "report.csv").open() as file:
        told = [row for row in csv.DictReader(file) if row["metric"] == "calibration_error" and row["mean"]]
    assert {(row["method"], row["mean"], row["baseline"]) for row in told} == {
        ("hpca, closed form", "0.02", ""), ("random, closed form", "0.01", ""),
    }  # fmt: skip


def test_a_stage_of_an_earlier_version_has_no_count(tmp_path: Path) -> None:
    make_run(tmp_path, "none", 0.1, 0, 0.7)
    (path,) = tmp_path.glob("finetune-*/results.json")
    results = json.loads(path.read_text())
    del results["backward_passes"]
    path.write_text(json.dumps(results))
    (row,) = tables.time_rows(grids_of(tmp_path)[0])
    assert row["backward passes"] == "–"


def test_one_seed_tells_nothing(tmp_path: Path) -> None:
    make_run(tmp_path, "hpca", 0.1, 0, 0.8)
    make_run(tmp_path, "none", 0.1, 0, 0.7)
    (grid,) = grids_of(tmp_path)
    (answer,) = answers(grid)
    assert answer.verdict == "untold"
    assert "one seed allows no test" in answer.text
    assert "two seeds or more" in verdict([answer])


def test_missing_cells(tmp_path: Path) -> None:
    make_grid(tmp_path)
    make_run(tmp_path, "swta", 0.01, 0, 0.5)
    (grid,) = grids_of(tmp_path)
    assert grid.missing() == {"hpca": {0.1: [2]}, "swta": {0.01: [1, 2], 0.1: [0, 1, 2]}}
    for rule in ("hpca", "none", "swta"):
        make_run(tmp_path, rule, 0.01, 3, 0.5)
    assert grids_of(tmp_path)[0].missing()["none"] == {0.1: [3]}  # like every other method
    assert tables.missing_lines(grid)[1] == "swta: 1 % seed 1, 2; 10 % seed 0, 1, 2"
    cells = dict(tables.accuracy_rows(grid, "top1"))["swta"]
    assert [cell.text for cell in cells] == ["50.0", tables.ABSENT]


def test_baseline_is_the_best_without_pretraining(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path, "hpca", 0.1, seed, 0.8 + seed / 100)
        make_run(tmp_path, "none", 0.1, seed, 0.5)
        make_run(tmp_path, "none", 0.1, seed, 0.7, {"finetune.layer": "conv2"})
    (grid,) = grids_of(tmp_path)
    baseline = grid.baseline(grid.methods[0], 0.1, "top1")
    assert baseline is not None
    assert baseline.name == "none (finetune.layer=conv2)"


def test_one_lucky_run_is_no_method(tmp_path: Path) -> None:
    """One seed of other settings replaces neither the best method nor the baseline, which have several seeds."""
    make_grid(tmp_path)
    make_run(tmp_path, "none", 0.01, 0, 0.99, {"finetune.lr": 0.01})
    make_run(tmp_path, "hpca", 0.01, 0, 0.98, {"finetune.lr": 0.01})
    (grid,) = grids_of(tmp_path)
    assert "hpca has 82.0 ± 5.0 %" in answers(grid)[0].text.replace(" (finetune.lr=0.003)", "")
    assert answers(grid)[0].verdict == "yes"
    rows = dict(tables.accuracy_rows(grid, "top1"))
    assert [name for name, cells in rows.items() if cells[0].best] == ["hpca (finetune.lr=0.003)"]


def test_labels_that_were_looked_at_to_choose_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "runs", "hpca", 0.1, 0, 0.8, labels_validation=300)
    make_run(tmp_path / "runs", "none", 0.1, 0, 0.7)
    told = "hpca was chosen by looking at 300 validation labels"
    code, printed, _ = call(capsys, "report", tmp_path / "runs", f"out={tmp_path}")
    assert code == 0
    for text in (printed, (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()):
        assert told in text
        assert text.count("validation labels") == 1


def test_probes_alone_make_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, top1 in ((0, 0.6), (1, 0.7)):
        shared = {"seed": seed, "rule.name": "hpca"}
        _, previous = make_stage(tmp_path / "runs", "pretrain", shared | {"previous": None}, {"seconds": 60.0})
        layers = {"conv1": {"top1": 0.5, "retrieval": 0.2}, "conv2": {"top1": top1, "retrieval": 0.3}}
        make_stage(tmp_path / "runs", "probe", shared | {"previous": previous}, {"layers": layers, "labels_train": 300})
    code, printed, _ = call(capsys, "report", tmp_path / "runs", f"out={tmp_path}")
    assert code == 0
    assert "65.0" in printed
    markdown, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    assert "| hpca | 50.0 ± 0.0 (n = 2) | **65.0 ± 63.5** (n = 2) |" in markdown
    assert "| hpca, retrieval (mAP) | 20.0 ± 0.0 (n = 2) | **30.0 ± 0.0** (n = 2) |" in markdown
    assert "at 10 % (300 labels)" in markdown
    assert "Does Hebbian pre-training pay" not in markdown
    assert "65.0 ± 63.5" in page
    assert page.count("<svg") == 1
    with (tmp_path / "report.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "by layer: conv2"]
    assert (rows[0]["method"], rows[0]["n"], rows[0]["mean"]) == ("hpca", "2", "0.65")


def test_baseline_without_scratch_is_the_best_other(tmp_path: Path) -> None:
    make_run(tmp_path, "hpca", 0.1, 0, 0.8)
    make_run(tmp_path, "swta", 0.1, 0, 0.7)
    (grid,) = grids_of(tmp_path)
    assert [getattr(grid.baseline(method, 0.1, "top1"), "name", None) for method in grid.methods] == ["swta", "hpca"]
    assert answers(grid)[0].verdict == "untold"
    assert "give no answer" in verdict(answers(grid))


def test_splits_and_data_sets_are_not_mixed(tmp_path: Path) -> None:
    make_run(tmp_path, "hpca", 0.1, 0, 0.8)
    make_run(tmp_path, "hpca", 0.1, 1, 0.8, split="validation")
    make_run(tmp_path, "hpca", 0.1, 2, 0.8, dataset="other")
    assert [(grid.dataset, grid.split) for grid in grids_of(tmp_path)] == [
        ("digits", "test"), ("digits", "validation"), ("other", "test"),
    ]  # fmt: skip


def test_names_need_the_fewest_keys() -> None:
    methods = [
        {"rule.name": "hpca", "finetune.lr": 0.1, "finetune.layer": "conv2"},
        {"rule.name": "hpca", "finetune.lr": 0.2, "finetune.layer": None},
        {"rule.name": "mine:fast", "finetune.lr": 0.2},
        {"rule.name": "swta", "pretrain.lr": 0.1, "model.width": 0.5},
        {"rule.name": "swta", "pretrain.lr": 0.2, "model.width": 0.5},
    ]
    names = ["hpca (finetune.layer=conv2)", "hpca", "fast", "swta (pretrain.lr=0.1)", "swta (pretrain.lr=0.2)"]
    assert name_methods(methods) == names


def test_methods_differ_by_the_pretraining_before(tmp_path: Path) -> None:
    """The settings of the evaluation alone don't say how its features were learnt."""
    for lr in (0.1, 0.2):
        shared = {"seed": 0, "rule.name": "hpca"}
        _, previous = make_stage(tmp_path, "pretrain", shared | {"previous": None, "pretrain.lr": lr}, {})
        _, previous = make_stage(tmp_path, "finetune", shared | {"previous": previous, "label_fraction": 0.1}, {})
        make_stage(tmp_path, "evaluate", shared | {"previous": previous}, {"top1": lr, "split": "test"})
    (grid,) = grids_of(tmp_path)
    assert [method.name for method in grid.methods] == ["hpca (pretrain.lr=0.1)", "hpca (pretrain.lr=0.2)"]


def test_chain_goes_on_through_init_from(tmp_path: Path) -> None:
    """With `init_from`, `previous` is the digest of the file of weights."""
    digest = "0123456789abcdef" * 2
    settings = {"seed": 0, "rule.name": "hpca", "pretrain.lr": 0.7}
    make_stage(tmp_path, "pretrain", settings, {"weights": digest})
    make_stage(tmp_path, "evaluate", {"seed": 0, "rule.name": "hpca", "previous": digest}, {"top1": 0.5})
    (grid,) = grids_of(tmp_path)
    assert grid.methods[0].settings["pretrain.lr"] == 0.7


def test_one_directory_finds_those_before_it(tmp_path: Path) -> None:
    directory = make_run(tmp_path, "hpca", 0.1, 0, 0.8)
    (grid,) = grids_of(directory)
    assert [stage.kind for stage in grid.methods[0].runs[0.1][0].chain] == ["pretrain", "finetune", "evaluate"]


def by_layer(*places: Path) -> dict[str, dict[str, float]]:
    (grid,) = grids_of(*places)
    layers = accuracies_by_layer(grid)
    assert layers is not None
    return {name: means(found) for name, found in layers.estimates().items()}


def probe(runs: Path, after: dict[str, object], conv1: float, **results: object) -> None:
    """A probe after pre-training, or if `after` has settings, after a fine-tuning with these settings."""
    shared = {"seed": 0, "rule.name": "hpca"}
    head = {"probe.hidden": after.pop("hidden", 0)}
    _, previous = make_stage(runs, "pretrain", shared | {"previous": None}, {})
    if after:
        _, previous = make_stage(runs, "finetune", shared | after | {"previous": previous}, {})
    measured = {"layers": {"conv1": {"top1": conv1, "knn": 0.5}}, "labels_train": 300, "split": "test"}
    make_stage(runs, "probe", shared | head | {"previous": previous}, measured | results)


def test_accuracy_by_layer(tmp_path: Path) -> None:
    for layer, top1 in (("conv1", 0.5), ("conv2", 0.7)):
        make_run(tmp_path, "hpca", 0.1, 0, top1, {"finetune.layer": layer})
    assert by_layer(tmp_path) == {"hpca": {"conv1": 0.5, "conv2": 0.7}}
    make_stage(tmp_path, "probe", {"seed": 0, "rule.name": "swta"}, {"layers": {"conv1": {"top1": 0.25, "knn": 0.5}}})
    found = by_layer(tmp_path)
    assert (found["swta"], found["swta, k-NN"]) == ({"conv1": 0.25}, {"conv1": 0.5})
    make_stage(tmp_path, "probe", {"seed": 0, "rule.name": "hpca"}, {"layers": {"conv1": {"top1": 0.25}}})
    found = by_layer(tmp_path)
    assert (found["hpca"], found["hpca, probed"]) == ({"conv1": 0.5, "conv2": 0.7}, {"conv1": 0.25})


def test_probes_of_other_features_or_heads_are_other_rows(tmp_path: Path) -> None:
    probe(tmp_path, {}, 0.5)
    probe(tmp_path, {"finetune.lr": 0.1}, 0.6)
    found = {name: values["conv1"] for name, values in by_layer(tmp_path).items() if "k-NN" not in name}
    assert found == {"hpca (after=finetune)": 0.6, "hpca (after=pretrain)": 0.5}
    probe(tmp_path, {"hidden": 5}, 0.7)
    found = {name: values["conv1"] for name, values in by_layer(tmp_path).items() if "k-NN" not in name}
    assert found["hpca (after=pretrain, probe.hidden=5)"] == 0.7
    assert len(found) == 3


@pytest.mark.slow
def test_layers_stand_under_the_budget_and_images_they_were_measured_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_grid(tmp_path / "runs")
    probe(tmp_path / "runs", {}, 0.5, label_fraction=0.01, labels_train=30)
    probe(tmp_path / "runs", {"hidden": 3}, 0.4, label_fraction=0.5, samples=77)
    assert call(capsys, "report", tmp_path / "runs", f"out={tmp_path}")[0] == 0
    few, other = (tmp_path / "report.md").read_text().split("\n## digits")[1:]
    few, other = (few, other) if "1,000 images" in few else (other, few)
    assert "test split of 77 images" in other
    assert "at 50 % (300 labels)" in other
    assert "| hpca | 40.0 (n = 1) |" in other
    assert "at 1 % (30 labels)" in few
    assert "| hpca | 50.0 (n = 1) |" in few
    with (tmp_path / "report.csv").open() as file:
        row = next(
            row for row in csv.DictReader(file) if row["metric"] == "by layer: conv1" and row["images"] == "1000"
        )
    assert [row[key] for key in ("label_fraction", "labels", "seeds", "values")] == ["0.01", "30", "0", "0.5"]


def test_what_failed_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This includes a rule that has no accuracy at all."""
    runs = tmp_path / "runs"
    for seed in (0, 1):
        make_run(runs, "none", 0.1, seed, 0.5)
        directory, _ = make_stage(runs, "pretrain", {"seed": seed, "rule.name": "swta", "previous": None}, {})
        (directory / "results.json").unlink()
        (directory / "error.txt").write_text("weights are not finite\n")
    code, printed, _ = call(capsys, "report", runs, f"out={tmp_path}")
    assert code == 0
    line = "swta: pretrain of seed 0, 1 failed: weights are not finite"
    for text in (printed, (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()):
        assert line in text
        assert "Nothing: every method" not in text


def test_the_best_of_several_is_said_to_be_one(tmp_path: Path) -> None:
    make_grid(tmp_path)
    for seed in (0, 1, 2):
        make_run(tmp_path, "swta", 0.01, seed, 0.5)
    few, many = answers(grids_of(tmp_path)[0])
    assert "hpca (best of 2) has 82.0" in few.text
    assert "best of" not in many.text


def test_every_method_has_a_look_of_its_own() -> None:
    methods = [Method(f"{rule} {number}", {"rule.name": rule}) for rule in ("hpca", "none") for number in range(12)]
    looks = looks_of(methods)
    assert len({(look["color"], look["linestyle"]) for look in looks.values()}) == len(methods)
    assert not {looks[f"hpca {k}"]["color"] for k in range(12)} & {looks[f"none {k}"]["color"] for k in range(12)}


def test_bands_of_the_accuracy_figure_are_the_95_percent_intervals(tmp_path: Path) -> None:
    make_grid(tmp_path)
    (grid,) = grids_of(tmp_path)
    looks = looks_of(grid.methods)
    svg = accuracy_figure(grid, "top1", looks)
    for method in grid.methods:
        colour, number = looks[method.name]["color"], r"(-?[\d.]+)"
        line = re.search(rf'd="M {number} {number} \nL {number} {number} \n"[^>]*stroke: {colour}', svg)
        band = re.search(rf'href="#(\w+)" x="0" y="{number}" style="fill: {colour}; fill-opacity', svg)
        assert line, method.name
        assert band, method.name
        x1, y1, x2, y2 = map(float, line.groups())
        outline = re.search(rf'id="{band[1]}" d="([^"]*)"', svg)
        assert outline
        points = [(float(x), float(y) + float(band[2])) for x, y in re.findall(rf"{number} {number}", outline[1])]
        first, second = (method.estimate(fraction, "top1") for fraction in grid.fractions)
        assert first
        assert second
        scale = (y1 - y2) / (second.mean - first.mean)
        for x, y, found in ((x1, y1, first), (x2, y2, second)):
            assert found.half_width
            edges = [other for at, other in points if at == pytest.approx(x)]
            half = scale * found.half_width
            assert (min(edges), max(edges)) == pytest.approx((y - half, y + half), rel=1e-4)


@pytest.mark.slow
def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, out = tmp_path / "runs", tmp_path / "report"
    make_grid(runs)
    for seed in (0, 1):
        make_run(runs, "swta", 0.1, seed, 0.9, confusion=[[3, 1], [0, 4]], classes=["<cat>", "dog"])
    code, printed, _ = call(capsys, "report", runs, f"out={out}")
    assert code == 0
    assert "82.0 ± 5.0 (n=3)" in printed
    assert str(out / "report.html") in printed
    with (out / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    row = next(row for row in rows if (row["method"], row["label_fraction"], row["metric"]) == ("hpca", "0.01", "top1"))
    assert (row["n"], row["mean"], row["difference"], row["values"]) == ("3", "0.82", "0.1", "0.8 0.82 0.84")
    page, markdown = (out / "report.html").read_text(), (out / "report.md").read_text()
    for text in ("82.0 ± 5.0", "swta: 1 % seed 0, 1, 2", "git abc1234"):
        assert text in page
        assert text in markdown
    assert "82.0\u00a0±\u00a05.0\u00a0%" in page  # in a sentence, where a line could break
    assert "&lt;cat&gt;" in page
    assert "<cat>" not in page


@pytest.mark.slow
def test_page_needs_nothing_beside_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_grid(tmp_path / "runs")
    call(capsys, "report", tmp_path / "runs", f"out={tmp_path / 'report'}")
    page = (tmp_path / "report" / "report.html").read_text()
    assert not re.search(r"https?:|<script|<link|@import|url\((?!#)|src=\"(?!data:)", page)
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', page)) <= set(identifiers)
    assert str(tmp_path) not in page
    call(capsys, "report", tmp_path / "runs", f"out={tmp_path / 'again'}")
    assert (tmp_path / "again" / "report.html").read_text() == page


@pytest.mark.slow
def test_real_runs(command: Callable[..., Ran], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fewer = ("~rule.layer_lr", "+rule.layer_lr={fc*:0.5}")  # an override alone would add to hpca's own
    for rule, more in (("hpca", fewer), ("none", ())):
        ran = command("train", f"rule={rule}", *more, "label_fraction=0.1", "pretrain.epochs=1")
        assert ran.code == 0, ran.err
    code, printed, _ = call(capsys, "report", tmp_path / "runs", f"out={tmp_path / 'report'}")
    assert code == 0
    top1 = max(100 * json.loads((path / "results.json").read_text())["top1"] for path in ran.directories("evaluate"))
    assert f"{top1:.1f}" in printed
    assert "image/png" in (tmp_path / "report" / "report.html").read_text()
    recipes = re.findall(r"^fasthebb (.*)$", (tmp_path / "report" / "report.md").read_text(), re.MULTILINE)
    assert "label_fraction=0.1" in recipes[1]
    assert "dropout" not in recipes[1]  # since the choices set it to this value
    before = sorted(path.name for path in ran.runs.iterdir())
    verb, *words = shlex.split(recipes[0])
    ran = command(verb, *words, "gpu=cpu", small=False)  # the report's command finds the same runs
    assert ran.code == 0
    assert ran.out.count("cached") == 3
    assert sorted(path.name for path in ran.runs.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report"], "usage: fasthebb report RUNS ..."),
        (["report", "nowhere"], "no such directory"),
        (["report", "empty"], "no stage directories there"),
        (["report", "unfinished"], "found 2 stages: 1 failed, 1 stale"),
        (["report", "runs", "out="], "out is empty; give a path"),
        (["report", "runs", "depth=3"], "unknown setting depth"),
        (["runs", "runs", "state=dead"], "state must be one of finished, running, failed, stale"),
        (["compare", "runs", "runs"], "is no stage's directory"),
        (["compare", "runs"], "usage: fasthebb compare"),
    ],
)
def test_bad_input(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs", "none", 0.1, 0, 0.5)
    (tmp_path / "empty").mkdir()
    for name in ("a", "b"):
        directory = tmp_path / "unfinished" / name
        directory.mkdir(parents=True)
        (directory / "fingerprint.json").write_text('{"kind": "evaluate"}')
    (tmp_path / "unfinished" / "a" / "error.txt").write_text("out of memory\n")
    code, _, errors = call(capsys, *words)
    assert code == 2
    assert message in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300])
def test_out_that_can_not_be_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    make_run(tmp_path / "runs", "none", 0.1, 0, 0.5)
    (tmp_path / "file").write_text("")
    code, _, errors = call(capsys, "report", tmp_path / "runs", f"out={tmp_path / place}")
    assert (code, errors.count("\n")) == (2, 1)
    assert "file is a file; give a folder" in errors or "out: a folder's or file's name takes 300 bytes" in errors


def test_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fasthebb_cli.report.command.find_spec", lambda name: None if name == "jinja2" else name)
    code, _, errors = call(capsys, "report", tmp_path)
    assert code == 2
    assert 'jinja2: pip install "fasthebb[report]"' in errors


def test_times_are_means_of_each_pre_training_once(tmp_path: Path) -> None:
    """Two cells share hpca's pre-training of a minute; each fine-tuning took ten seconds."""
    for fraction in (0.01, 0.1):
        make_run(tmp_path, "hpca", fraction, 0, 0.8)
    make_run(tmp_path, "none", 0.1, 0, 0.7)
    learnt, scratch = tables.time_rows(grids_of(tmp_path)[0])
    assert (learnt["pretrain"], learnt["pretrain speed"], learnt["finetune"]) == ("1 min 00 s", "100", "10 s")
    assert (scratch["pretrain"], scratch["pretrain speed"], scratch["finetune"]) == ("–", "–", "10 s")


@pytest.mark.slow
def test_the_page_shows_curves_and_the_best_in_bold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_grid(tmp_path / "runs")
    call(capsys, "report", tmp_path / "runs", f"out={tmp_path}")
    page = (tmp_path / "report.html").read_text()
    for caption in (
        "Fine-tuning on 1 % (30 labels), seed 0: training loss.",
        "Fine-tuning on 10 % (300 labels), seed 0: training accuracy in %.",
        "Pre-training, hpca, seed 0: how far a step moves each layer.",
    ):
        assert caption in page.replace("\u00a0", " ")
    best = re.findall(r'<td class="best"><span class="mean">([^<]*)</span>', page)
    assert [text.split()[0] for text in best[:2]] == ["82.0", "93.7"]  # hpca at 1 %, none at 10 %
    assert re.search(r"\.best[^{]*\{[^}]*font-weight: *(bold|[6-9]00)", page)
    assert "**82.0 ± 5.0**" in (tmp_path / "report.md").read_text()


def in_chromium(tmp_path: Path, *options: str) -> str:
    """The output of the browser."""
    browser = shutil.which("chromium")
    if browser is None:
        lacking("needs chromium (Debian's package of that name)")
    common = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}")
    done = subprocess.run([browser, *common, *options], check=True, capture_output=True, text=True, timeout=120)
    return done.stdout


@pytest.mark.browser
def test_page_in_a_browser(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_grid(tmp_path / "runs")
    call(capsys, "report", tmp_path / "runs", f"out={tmp_path}")
    picture = tmp_path / "page.png"
    page = (tmp_path / "report.html").as_uri()
    in_chromium(tmp_path, "--window-size=1200,3000", f"--screenshot={picture}", page)
    assert picture.stat().st_size > 50_000  # an empty page compresses to less


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_page_is_no_wider_than_its_window(width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a frame, since a headless window is at least 500 pixels wide. Wide tables scroll within the page."""
    make_grid(tmp_path / "runs")
    call(capsys, "report", tmp_path / "runs", f"out={tmp_path}")
    page = html.escape((tmp_path / "report.html").read_text())
    measure = "document.title = [w.scrollWidth, w.clientWidth, w.scrollHeight].join()"
    (tmp_path / "frame.html").write_text(
        f'<title></title><iframe width="{width}" height="800" style="border:0" srcdoc="{page}" '
        f'onload="const w = this.contentDocument.documentElement; {measure}"></iframe>'
    )
    dom = in_chromium(tmp_path, "--window-size=1400,1000", "--dump-dom", (tmp_path / "frame.html").as_uri())
    found = re.search(r"<title>(\d+),(\d+),(\d+)</title>", dom)
    assert found is not None, dom[:500]
    content, window, height = map(int, found.groups())
    assert content <= window <= width
    assert height > 1500  # it is the whole page


@pytest.mark.browser
def test_page_on_paper_shows_what_is_folded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Paper also shows all settings, which the screen folds."""
    if shutil.which("pdftotext") is None:
        lacking("needs pdftotext (Debian's poppler-utils)")
    make_grid(tmp_path / "runs")
    call(capsys, "report", tmp_path / "runs", f"out={tmp_path}")
    in_chromium(tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}", (tmp_path / "report.html").as_uri())
    words = ["pdftotext", "-layout", str(tmp_path / "page.pdf"), "-"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert "finetune.lr" in done.stdout
    assert "82.0" in done.stdout


@pytest.mark.parametrize("imbalance", [1.2, 9.0])
def test_balanced_accuracy_is_shown_where_classes_are_unlike_in_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], imbalance: float
) -> None:
    for seed in range(2):
        for rule, balanced in (("hpca", 0.6123), ("none", 0.5)):
            made = make_run(tmp_path / "runs", rule, 0.1, seed, 0.9, balanced_top1=balanced, imbalance=imbalance)
    code, _, err = call(capsys, "report", tmp_path / "runs", f"out={tmp_path / 'report'}")
    assert (code, err) == (0, "")
    shown = imbalance > 2
    assert ("61.2" in (tmp_path / "report" / "report.md").read_text()) == shown
    assert (",balanced_top1," in (tmp_path / "report" / "report.csv").read_text()) == shown
    assert ("balanced top-1 %" in call(capsys, "compare", made, made)[1]) == shown


def test_the_counts_of_classes_tell_how_unlike_they_are() -> None:
    confusion = Confusion(3)
    confusion.add(torch.tensor([0, 0, 0, 0, 2]), torch.tensor([0, 0, 1, 2, 2]))
    assert confusion.imbalance() == 4.0
    assert confusion.accuracy() == [0.5, None, 1.0]


def test_label_lists_and_fits_have_tables_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    for listed, top1 in (("4 images aaaa", 0.5), ("4 images bbbb", 0.75)):
        for seed in range(2):
            make_run(runs, "hpca", 0.1, seed, top1, content={"dataset.labelled": listed})
    make_run(runs, "hpca", 0.1, 0, 0.25, content={"dataset.fit": "pad, background white"})
    make_run(runs, "hpca", 0.1, 0, 0.125, content={"dataset.images": "1234567890"})
    make_run(runs, "hpca", 0.1, 0, 0.875)
    code, out, err = call(capsys, "report", runs, f"out={tmp_path / 'report'}")
    assert (code, err) == (0, "")
    for title, value in (("labels listed: 4 images aaaa", "50.0"), ("labels listed: 4 images bbbb", "75.0"),
                         ("pad, background white", "25.0"), ("images 123456", "12.5")):  # fmt: skip
        after = out.partition(title)[2]
        assert value in after.split("split of")[0], title
