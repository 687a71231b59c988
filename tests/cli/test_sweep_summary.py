"""What ends a sweep: means over seeds by method and label budget, and sentences that follow from the numbers."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from fasthebb_cli.cli.sweep_summary import conclusions, groups_of, names_of
from fasthebb_cli.cli.sweep_table import print_cells
from tests.conftest import Ran

KEYS = ["rule", "finetune", "seed"]
WAYS = {"backprop": "backprop", "few": "backprop", "closed_form": "closed form"}


def cell(rule: str, finetune: str, seed: int, top1: float | None, labels: int = 30, **more: str) -> dict[str, Any]:
    """A finished cell whose pre-training took 4 s and whose fine-tuning took 2 s."""
    shared = {
        "rule": rule, "seed": seed, "top1": None, "top5": None, "labels_train": 0, "labels_validation": 0,
        "backward_passes": 0, "measures": False, "fine_tuning": "", "cached": False,
        "directory": "runs/digits-0123456789",
    }  # fmt: skip
    way = WAYS[finetune]
    passes = 0 if way == "closed form" else 6000
    rows = [
        shared | {"stage": "pretrain", "seconds": 4.0},
        shared | {"stage": "finetune", "seconds": 2.0, "backward_passes": passes, "fine_tuning": way},
        shared | {"stage": "evaluate", "seconds": 1.0, "measures": True, "top1": top1, "labels_train": labels},
    ]
    chosen = {"rule": rule, "finetune": finetune, "seed": str(seed), **more}
    return {"overrides": [f"{key}={value}" for key, value in chosen.items()], "code": 0, "error": "", "rows": rows}


def sweep(**top1: list[float]) -> list[dict[str, Any]]:
    """Cells by seed: hpca_closed_form=[0.9, 0.8]."""
    return [
        cell(rule, finetune, seed, value)
        for name, values in top1.items()
        for rule, _, finetune in [name.partition("_")]
        for seed, value in enumerate(values)
    ]


def printed(cells: list[dict[str, Any]], width: int) -> list[str]:
    file = io.StringIO()
    print_cells(Console(file=file, width=width, no_color=True), cells)
    return file.getvalue().splitlines()


def test_a_row_for_each_method_with_its_mean_over_seeds() -> None:
    lines = printed(sweep(hpca_closed_form=[0.90, 0.94], none_backprop=[0.70, 0.74]), width=80)
    assert max(len(line) for line in lines) <= 80
    tables = "\n".join(lines)
    assert "hpca, closed form      30  92.0 (2.8)      2         0  7.0 s" in tables
    assert "none, backprop         30  72.0 (2.8)      2     6,000  7.0 s" in tables
    assert len([line for line in lines if line.endswith("…23456789")]) == 4  # each cell on one line


def test_a_narrow_console_has_the_labels_in_place_of_their_fraction() -> None:
    cells = [
        cell("hpca", finetune, seed, 0.9, labels, label_fraction=str(labels / 1000))
        for finetune in ("closed_form", "backprop")
        for seed in (0, 1)
        for labels in (30, 100)
    ]
    assert "label_fraction" in "".join(printed(cells, width=160))
    lines = printed(cells, width=80)
    assert "label_fraction" not in "".join(lines)
    assert len([line for line in lines if line.endswith("…23456789")]) == 8
    cells[0] |= {"code": 1, "error": "out of memory"}
    assert "label_fraction" in "".join(printed(cells, width=80))  # a failed cell has no labels


def test_values_stand_there_as_the_user_means_them() -> None:
    cells = [cell("hpca", "backprop", seed, 0.9) for seed in (0, 1)]
    cells[0]["overrides"] += ["dataset.root='two words'", "model=mine\\:net"]
    cells[1]["overrides"] += ["dataset.root=one", "model=conv6"]
    text = "\n".join(printed(cells, width=160))
    assert "two words" in text
    assert "'two words'" not in text
    assert "mine:net" in text


def test_the_sentence_follows_from_the_numbers() -> None:
    cells = sweep(
        hpca_closed_form=[0.90, 0.94], hpca_backprop=[0.95, 0.99], random_closed_form=[0.91, 0.94],
        random_backprop=[0.1, 0.1], none_backprop=[0.70, 0.74],
    )  # fmt: skip
    assert conclusions(groups_of(cells, KEYS)) == [
        "Without a backward pass, hpca with closed form is 20.0 points above none with backprop at 30 labels (n = 2); "
        "of these, learning the filters adds −0.5 points (against random with closed form, n = 2)."
    ]
    worse = sweep(hpca_closed_form=[0.50, 0.60], random_closed_form=[0.4, 0.4], none_backprop=[0.70, 0.70])
    assert conclusions(groups_of(worse, KEYS)) == [
        "Without a backward pass, hpca with closed form is 15.0 points below none with backprop at 30 labels (n = 2); "
        "learning the filters adds +15.0 points (against random with closed form, n = 2)."
    ]


def test_methods_with_backward_passes_are_not_said_to_have_none() -> None:
    (line,) = conclusions(groups_of(sweep(hpca_backprop=[0.9], none_backprop=[0.9]), KEYS))
    assert line == "hpca with backprop is level with none with backprop at 30 labels (n = 1)."


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (sweep(hpca_closed_form=[0.9]), []),
        (sweep(random_closed_form=[0.9], none_backprop=[0.7]), []),
        (sweep(hpca_closed_form=[0.9], none_closed_form=[0.7]), []),  # it is not trained from scratch
        (sweep(hpca_closed_form=[0.9], random_backprop=[0.7]), []),
        (
            sweep(hpca_closed_form=[0.9], random_closed_form=[0.8]),
            ["With hpca with closed form at 30 labels, learning the filters adds +10.0 points "
             "(against random with closed form, n = 1)."],
        ),
    ],
)  # fmt: skip
def test_only_what_is_in_the_sweep_is_compared(cells: list[dict[str, Any]], expected: list[str]) -> None:
    assert conclusions(groups_of(cells, KEYS)) == expected


def test_seeds_that_only_one_has_are_not_compared_and_a_lucky_seed_is_no_method() -> None:
    cells = sweep(hpca_closed_form=[0.8, 0.9], none_backprop=[0.7], none_few=[0.6, 0.6])
    (line,) = conclusions(groups_of(cells, KEYS))
    assert "is 25.0 points above none with backprop (finetune=few) at 30 labels (n = 2)" in line
    (line,) = conclusions(groups_of(cells[:3], KEYS))
    assert "is 10.0 points above none with backprop at 30 labels (n = 1)" in line


def test_each_label_budget_and_each_data_set_is_compared_by_itself() -> None:
    cells = [
        cell(rule, finetune, 0, top1, labels, dataset=dataset, label_fraction=str(labels / 1000))
        for dataset, labels, learnt, scratch in
        (("digits", 30, 0.9, 0.8), ("digits", 100, 0.9, 0.85), ("mnist", 30, 0.5, 0.7))
        for rule, finetune, top1 in (("hpca", "closed_form", learnt), ("none", "backprop", scratch))
    ]  # fmt: skip
    few, many, other = conclusions(groups_of(cells, [*KEYS, "dataset", "label_fraction"]))
    assert "10.0 points above none with backprop at 30 labels and dataset=digits" in few
    assert "5.0 points above none with backprop at 100 labels and dataset=digits" in many
    assert "20.0 points below none with backprop at 30 labels and dataset=mnist" in other


def test_experiments_are_compared_where_images_and_network_are_the_same() -> None:
    def of(experiment: str, rule: str, finetune: str, subject: str) -> list[dict[str, Any]]:
        cells = [cell(rule, finetune, seed, top1, experiment=experiment) for seed, top1 in enumerate((0.7, 0.8))]
        for row in (row for one in cells for row in one["rows"]):
            row["directory"] = f"runs/{subject}-{rule}-1-seed0-evaluate-01234567"
        return cells

    learnt = of("a/hpca", "hpca", "closed_form", "digits-conv6")
    keys = ["experiment", "seed"]
    same = groups_of([*learnt, *of("a/scratch", "none", "backprop", "digits-conv6")], keys)
    assert [name.in_table for name in names_of(same)] == ["hpca, closed form", "none, backprop"]
    (line,) = conclusions(same)
    assert line.startswith(
        "Without a backward pass, hpca with closed form is level with none with backprop at 30 labels"
    )
    other = groups_of([*learnt, *of("b/scratch", "none", "backprop", "cifar10-conv6")], keys)
    assert conclusions(other) == []


def test_names_tell_apart_what_the_sweep_varies() -> None:
    cells = [
        cell("hpca", finetune, 0, 0.9, 30, **{"pretrain.lr": rate})
        for finetune in ("backprop", "few", "closed_form")
        for rate in ("0.1", "0.2")
    ]
    names = [name.in_table for name in names_of(groups_of(cells, [*KEYS, "pretrain.lr"]))]
    assert len(set(names)) == 6
    assert "hpca, closed form, pretrain.lr=0.1" in names
    assert "hpca, backprop, finetune=few, pretrain.lr=0.2" in names


def test_cells_that_failed_or_measured_nothing_are_left_out() -> None:
    failed = cell("hpca", "backprop", 0, 0.9) | {"code": 1, "rows": []}
    assert groups_of([failed, cell("none", "backprop", 0, None)], KEYS) == []
    assert not any("mean" in line for line in printed([failed, cell("none", "backprop", 1, None)], width=160))


@pytest.mark.slow
def test_a_sweep_ends_with_what_its_stages_took(command: Callable[..., Ran]) -> None:
    """Whether a stage ran or is reused: the tables say what results.json says."""
    words = ("dataset=digits", "model.width=0.03", "gpu=cpu", "pretrain.epochs=1", "seed=0,1", "label_fraction=0.03")
    for rules, ways in (("hpca,random", "closed_form"), ("none", "frozen")):
        ran = command("train", "-m", *words, f"rule={rules}", f"finetune={ways}", small=False)
        assert ran.code == 0, ran.err
    ran = command("train", "-m", *words, "rule=hpca,random,none", "finetune=closed_form,frozen", small=False)
    assert ran.code == 0, ran.err
    rows = {line.split("  ")[0]: line for line in ran.out.splitlines()}
    assert "  6,000  " in rows["none, frozen features"]  # 30 labels in 200 epochs
    assert "  0  " in rows["hpca, closed form"]
    scores: dict[str, list[float]] = {"hpca": [], "random": [], "none": []}
    for path in ran.directories("evaluate"):
        results = json.loads((path / "results.json").read_text())
        before = json.loads((path / "fingerprint.json").read_text())["previous"]
        tuned = [json.loads((other / "results.json").read_text()) for other in ran.directories("finetune")]
        (kind,) = [other["kind"] for other in tuned if other["fingerprint"] == before]
        if (kind == "closed_form") is (results["rule"] != "none"):
            scores[results["rule"]].append(results["top1"])
    gain = 50 * (sum(scores["hpca"]) - sum(scores["none"]))
    added = 50 * (sum(scores["hpca"]) - sum(scores["random"]))
    sentence = " ".join(ran.out.split())
    assert f"{abs(gain):.1f} points {'above' if gain > 0 else 'below'} none with frozen features" in sentence
    assert f"{abs(added):.1f} points (against random" in sentence
