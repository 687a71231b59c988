"""A grid's numbers as text: the answers, the tables of the papers, times, and what is missing.

Per cents have one decimal, differences are in points, and n is the number of seeds.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fasthebb_cli.console.formats import clock, pace
from fasthebb_cli.report.chains import SCRATCH
from fasthebb_cli.report.estimates import LEVEL, SIGNIFICANT, Difference, Estimate
from fasthebb_cli.report.grid import Grid, Method
from fasthebb_cli.report.layers import Layers

NOT_HEBBIAN = (SCRATCH, "vae")  # the second learns without labels too, but by backprop
ABSENT = "not available"
CSV_COLUMNS = (
    "dataset", "split", "images", "method", "label_fraction", "labels", "metric", "n", "mean", "ci95", "sd",
    "baseline", "difference", "p", "n_paired", "seeds", "values",
)  # fmt: skip
WITHOUT_SPREAD = "no spread over the seeds to test it with"


@dataclass(frozen=True)
class Cell:
    """One method at one fraction: its mean, its difference to the baseline, and the seeds behind them."""

    text: str
    n: int = 0
    against: str = ""
    best: bool = False
    baseline: bool = False
    significant: bool = False


@dataclass(frozen=True)
class Answer:
    """To "does it pay?" at one fraction: `verdict` is yes, no, open, or untold where nothing can be compared."""

    verdict: str
    text: str


def answers(grid: Grid) -> list[Answer]:
    """One per label fraction, on top-1: the best Hebbian method against the best without pre-training."""
    found = []
    for fraction in grid.fractions:
        learnt = grid.best(fraction, "top1", is_hebbian)
        scratch = grid.best(fraction, "top1", is_scratch)
        where = budget(grid, fraction)
        if learnt is None or scratch is None:
            best = learnt or scratch
            value = best.estimate(fraction, "top1") if best else None
            if best is None or value is None:
                continue
            lacking = "without" if scratch is None else "with"
            found.append(Answer("untold", f"{where}: {best.name} is best with {mean_text(value)} %; no run {lacking} "
                                        "Hebbian pre-training to compare it with."))  # fmt: skip
            continue
        difference = grid.difference(learnt, fraction, "top1")
        here, there = learnt.estimate(fraction, "top1"), scratch.estimate(fraction, "top1")
        assert here is not None
        assert there is not None
        text = f"{where}: {learnt.name}{_of_how_many(grid, fraction, is_hebbian)} has {mean_text(here)} %, "
        text += f"{scratch.name}{_of_how_many(grid, fraction, is_scratch)} {mean_text(there)} %"
        if difference is None:
            found.append(Answer("untold", f"{text}; they have no seed in common."))
            continue
        text += f": {points(difference)} points over {seeds_text(difference.n)}, {significance(difference)}."
        better = "yes" if difference.mean > 0 else "no"
        untold = "untold" if difference.n == 1 else "open"
        found.append(Answer(better if difference.significant else untold, text))
    return found


def is_hebbian(method: Method) -> bool:
    return method.rule not in NOT_HEBBIAN


def is_scratch(method: Method) -> bool:
    return method.rule == SCRATCH


def verdict(found: Sequence[Answer]) -> str:
    """All the answers in one sentence."""
    found = [answer for answer in found if answer.verdict != "untold"]
    if not found:
        return (
            "There are no runs to tell: it takes some with and some without Hebbian pre-training, on two seeds or more."
        )
    count = {kind: sum(answer.verdict == kind for answer in found) for kind in ("yes", "no", "open")}
    if count["open"] == len(found):
        return "The runs show no significant difference between Hebbian pre-training and none, either way."
    parts = []
    if count["yes"]:
        parts.append(f"Hebbian pre-training is significantly better at {count['yes']}")
    if count["no"]:
        parts.append(f"significantly worse at {count['no']}")
    if count["open"]:
        parts.append(f"not shown to differ at {count['open']}")
    if not count["yes"]:
        parts[0] = f"Hebbian pre-training is {parts[0]}"
    return f"Of {len(found)} label budgets, {', '.join(parts)}."


def accuracy_rows(grid: Grid, metric: str) -> list[tuple[str, list[Cell]]]:
    """A row per method, a cell per fraction of the grid."""
    rows = []
    for method in grid.methods:
        cells = []
        for fraction in grid.fractions:
            value = method.estimate(fraction, metric)
            if value is None:
                cells.append(Cell(ABSENT))
                continue
            baseline, difference = grid.baseline(method, fraction, metric), grid.difference(method, fraction, metric)
            against = f"{points(difference)}, {p_text(difference)}" if difference else ""
            if difference is not None and difference.n != value.n:
                against += f", {difference.n} pairs"
            best = grid.best(fraction, metric) is method and len(grid.methods) > 1
            is_significant = difference is not None and difference.significant
            cells.append(Cell(mean_text(value), value.n, against, best, baseline is None, is_significant))
        rows.append((method.name, cells))
    return rows


def layer_rows(by_method: Mapping[str, Mapping[str, Estimate]]) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """The layers, and a row per method and kind of classifier with a cell per layer; of each kind the best is bold."""
    layers = list(dict.fromkeys(layer for by_layer in by_method.values() for layer in by_layer))
    rows = []
    for name, by_layer in by_method.items():
        best = max(found.mean for found in by_layer.values())
        rows.append((name, [
            Cell(mean_text(found), found.n, best=found.mean == best and len(layers) > 1)
            if (found := by_layer.get(layer)) else Cell(ABSENT)
            for layer in layers
        ]))  # fmt: skip
    return layers, rows


def choosing_lines(grid: Grid) -> list[str]:
    """Methods that looked at validation labels, which a label budget does not count, a line each."""
    lines = []
    for method in grid.methods:
        counts = {run.results.get("labels_validation") or 0 for run in method.all_runs()}
        if max(counts) > 0:
            looked_at = f"{max(counts):,} validation labels besides its budget"
            lines.append(f"{method.name} was chosen by looking at {looked_at}.")
    return lines


def csv_rows(grids: Sequence[Grid]) -> list[dict[str, Any]]:
    """One row per data set, split, metric, method and fraction; accuracies are fractions, as in results.json."""
    return [
        _csv_row(grid, metric, method, fraction)
        for grid in grids for metric in grid.metrics for method in grid.methods for fraction in grid.fractions
    ]  # fmt: skip


def csv_layer_rows(grid: Grid, layers: Layers) -> list[dict[str, Any]]:
    """One row per method and layer, in the columns of `csv_rows`."""
    shared = {"dataset": grid.dataset, "split": grid.split, "images": grid.images,
              "label_fraction": layers.fraction, "labels": layers.labels}  # fmt: skip
    return [
        shared | {"method": name, "metric": f"by layer: {layer}"} | _csv_values(layers.values[name][layer], found)
        for name, by_layer in layers.estimates().items() for layer, found in by_layer.items()
    ]  # fmt: skip


def _csv_row(grid: Grid, metric: str, method: Method, fraction: float) -> dict[str, Any]:
    values, value = method.values(fraction, metric), method.estimate(fraction, metric)
    baseline, difference = grid.baseline(method, fraction, metric), grid.difference(method, fraction, metric)
    return {
        "dataset": grid.dataset,
        "split": grid.split,
        "images": grid.images,
        "method": method.name,
        "label_fraction": fraction,
        "labels": grid.labels(fraction),
        "metric": metric,
        "baseline": baseline.name if baseline and value else None,
        "difference": _rounded(round(difference.mean, 12) + 0.0 if difference else None),  # 0.0 where rounding is left
        "p": _rounded(difference.p if difference else None),
        "n_paired": difference.n if difference else None,
    } | _csv_values(values, value)


def _csv_values(values: Mapping[int, float], value: Estimate | None) -> dict[str, Any]:
    return {
        "n": len(values),
        "mean": _rounded(value.mean if value else None),
        "ci95": _rounded(value.half_width if value else None),
        "sd": _rounded(value.deviation if value else None),
        "seeds": " ".join(map(str, sorted(values))),
        "values": " ".join(f"{values[seed]:.6g}" for seed in sorted(values)),
    }


def time_rows(grid: Grid) -> list[dict[str, str]]:
    """Per method the mean time and speed of pre-training and, from the fewest labels to the most, of fine-tuning."""
    rows = []
    for method in grid.main:
        pretrained = {str(stage.path): stage.results for run in method.all_runs() if (stage := run.stage("pretrain"))}
        tuned = {fraction: [stage.results for run in runs.values() if (stage := run.stage("finetune"))]
                 for fraction, runs in sorted(method.runs.items())}  # fmt: skip
        times = [clock(_mean(results, "seconds")) for results in tuned.values() if results]
        everything = [results for several in tuned.values() for results in several]
        devices = dict.fromkeys(str(results["device"]) for results in [*pretrained.values(), *everything])
        rows.append({
            "method": method.name,
            "pretrain": clock(_mean(list(pretrained.values()), "seconds")) if pretrained else "–",
            "pretrain speed": _speed(list(pretrained.values())),
            "finetune": " to ".join(dict.fromkeys([times[0], times[-1]])) if times else "–",
            "finetune speed": _speed(everything),
            "device": "; ".join(devices),
        })  # fmt: skip
    return rows


def missing_lines(grid: Grid) -> list[str]:
    """What other methods have and one hasn't, a line per method."""
    return [
        f"{name}: " + "; ".join(f"{percent_label(fraction)} seed {', '.join(map(str, seeds))}"
                                for fraction, seeds in by_fraction.items())
        for name, by_fraction in grid.missing().items()
    ]  # fmt: skip


def budget(grid: Grid, fraction: float) -> str:
    return budget_text(fraction, grid.labels(fraction))


def budget_text(fraction: float, labels: int | None) -> str:
    return percent_label(fraction) + (f" ({labels:,} labels)" if labels else "")


def percent_label(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def mean_text(value: Estimate) -> str:
    """78.2 ± 1.3; without ± for one seed."""
    spread = f" ± {100 * value.half_width:.1f}" if value.half_width is not None else ""
    return f"{100 * value.mean:.1f}{spread}"


def points(difference: Difference) -> str:
    value = f"{100 * difference.mean:+.1f}"
    return "±0.0" if float(value) == 0 else value.replace("-", "−")


def p_text(difference: Difference) -> str:
    if difference.p is None:
        return "p –"
    if difference.p < 0.001:
        return "p < 0.001"
    return f"p = {difference.p:.3f}" if difference.p < 0.1 else f"p = {difference.p:.2f}"


def significance(difference: Difference) -> str:
    if difference.p is None:
        return "one seed can't tell" if difference.n == 1 else WITHOUT_SPREAD
    word = "significant" if difference.significant else "not significant"
    return f"{word} (paired t test, {p_text(difference)})"


def seeds_text(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} common seeds"


def explanation() -> str:
    """What the tables' numbers are; it stands beside them."""
    return (
        f"Mean ± half of the {LEVEL:.0%} confidence interval (Student's t) over n seeds, in %. Below it the mean "
        "difference in points to the baseline over the seeds that both have, with the p of the paired t test, "
        f"two-sided. At p < {SIGNIFICANT} it counts as significant; with many cells some will by chance. The best of a "
        "column is bold. The baseline is the best method without pre-training at that fraction; where there is none, "
        "the best of the others. Best is the highest mean of those with the most seeds, on these very images: a best "
        "of many is too good, so choose on the validation split first."
    ).replace("95%", "95 %")


def _of_how_many(grid: Grid, fraction: float, accept: Callable[[Method], bool]) -> str:
    count = len(grid.rivals(fraction, "top1", accept))
    return f" (best of {count})" if count > 1 else ""


def _mean(results: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.fmean(item[key] for item in results)


def _speed(results: Sequence[Mapping[str, Any]]) -> str:
    speeds = [item for item in results if item.get("images_per_second") and item["seconds"] > 0]
    if not speeds:
        return "–"
    images = sum(item["images_per_second"] * item["seconds"] for item in speeds)
    return pace(images / sum(item["seconds"] for item in speeds))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
