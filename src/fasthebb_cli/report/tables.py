"""The tables of a grid as text: accuracy by label budget and by layer, times, and what is missing."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fasthebb_cli.console.formats import backward_passes, clock, pace
from fasthebb_cli.report.estimates import LEVEL, SIGNIFICANT, Estimate
from fasthebb_cli.report.grid import Grid, Method, Run
from fasthebb_cli.report.texts import mean_text, p_text, percent_label, points

CALIBRATION = "calibration_error"  # a key of an evaluation's results
CALIBRATION_TOLD = (
    "The expected calibration error is the mean distance between confidence and accuracy, over 15 bins of the "
    "confidence. At 0 %, a network that is 90 % sure is right in 90 % of the cases. Mean ± half of the 95 % confidence "
    "interval over n seeds; the lowest mean of each column is bold."
)
COSTS_TOLD = (
    "Means over the runs. Fine-tuning and backward passes are given from the fewest labels to the most. Pre-training "
    "is done once a seed, for all label budgets. Backward passes are the images that went through one, summed over "
    "the epochs of all stages that learn."
)
ABSENT = "not available"


@dataclass(frozen=True)
class Cell:
    """One method at one label fraction, or at one layer.

    Args:
        text: the mean with its interval.
        n: the number of seeds; 0: nothing was measured.
        against: the difference to the baseline.
        best: it has the highest mean of its column (by layer: of its row).
        baseline: others of its column are compared with it.
    """

    text: str
    n: int = 0
    against: str = ""
    best: bool = False
    baseline: bool = False
    significant: bool = False


def accuracy_rows(grid: Grid, metric: str) -> list[tuple[str, list[Cell]]]:
    """A row per method, a cell per fraction of the grid."""
    return [(method.name, [_cell(grid, metric, method, fraction) for fraction in grid.fractions])
            for method in grid.methods]  # fmt: skip


def _cell(grid: Grid, metric: str, method: Method, fraction: float) -> Cell:
    value = method.estimate(fraction, metric)
    if value is None:
        return Cell(ABSENT)
    baseline, difference = grid.baseline(method, fraction, metric), grid.difference(method, fraction, metric)
    against = f"{points(difference)}, {p_text(difference)}" if difference else ""
    if difference is not None and difference.n != value.n:
        against += f", {difference.n} pairs"
    best = grid.best(fraction, metric) is method and len(grid.methods) > 1
    is_significant = difference is not None and difference.significant
    return Cell(mean_text(value), value.n, against, best, baseline is None, is_significant)


def calibration_rows(grid: Grid) -> list[tuple[str, list[Cell]]]:
    """As `accuracy_rows`, for the calibration error: the lowest mean of a column is the best."""
    found = {method.name: [method.estimate(fraction, CALIBRATION) for fraction in grid.fractions]
             for method in grid.methods}  # fmt: skip
    lowest = [
        min((value.mean for value in column if value), default=None) for column in zip(*found.values(), strict=True)
    ]
    return [
        (name, [Cell(mean_text(value), value.n, best=len(found) > 1 and value.mean == least) if value else Cell(ABSENT)
                for value, least in zip(values, lowest, strict=True)])
        for name, values in found.items() if any(values)
    ]  # fmt: skip


def layer_rows(by_method: Mapping[str, Mapping[str, Estimate]]) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """The layers, and a row per method and kind of classifier with a cell per layer. Each row marks its best layer."""
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


def time_rows(grid: Grid) -> list[dict[str, str]]:
    """Per method the mean time and speed of pre-training and, from the fewest labels to the most, of fine-tuning; and
    how many images went through a backward pass in all stages.
    """
    rows = []
    for method in grid.main:
        pretrained = {str(stage.path): stage.results for run in method.all_runs() if (stage := run.pretrained)}
        tuned = {fraction: [stage.results for run in runs.values() if (stage := run.fine_tuned)]
                 for fraction, runs in sorted(method.runs.items())}  # fmt: skip
        times = [_mean_time(results) for results in tuned.values() if results]
        everything = [results for several in tuned.values() for results in several]
        devices = dict.fromkeys(str(results["device"]) for results in [*pretrained.values(), *everything])
        rows.append({
            "method": method.name,
            "pretrain": _mean_time(list(pretrained.values())) if pretrained else "–",
            "pretrain speed": _mean_speed(list(pretrained.values())),
            "finetune": _span(times),
            "finetune speed": _mean_speed(everything),
            "backward passes": _span([_mean_passes(list(runs.values())) for _, runs in sorted(method.runs.items())]),
            "device": "; ".join(devices),
        })  # fmt: skip
    return rows


def missing_lines(grid: Grid) -> list[str]:
    """A line per method: the fractions and seeds that other methods have and it has not."""
    return [
        f"{name}: " + "; ".join(f"{percent_label(fraction)} seed {', '.join(map(str, seeds))}"
                                for fraction, seeds in by_fraction.items())
        for name, by_fraction in grid.missing().items()
    ]  # fmt: skip


def choosing_lines(grid: Grid) -> list[str]:
    """A line per method that looked at validation labels, which a label budget does not count."""
    lines = []
    for method in grid.methods:
        most = max(run.results.get("labels_validation") or 0 for run in method.all_runs())
        if most > 0:
            lines.append(f"{method.name} was chosen by looking at {most:,} validation labels besides its budget.")
    return lines


def explanation() -> str:
    """What the numbers of the tables are; it stands beside them."""
    return (
        f"Mean ± half of the {LEVEL:.0%} confidence interval (Student's t) over n seeds, in %. The line below gives "
        "the mean difference to the baseline in points, over the seeds that both have, and the p of the two-sided "
        f"paired t test. A difference counts as significant at p < {SIGNIFICANT}; with many cells, some are "
        "significant by chance. The best of each column is bold: the highest mean among the methods with the most "
        "seeds. The baseline is the best method without pre-training at that fraction; if there is none, it is the "
        "best of the other methods. The best of many methods on these images is too optimistic, so choose on the "
        "validation split first."
    ).replace("95%", "95 %")


def _mean_time(results: Sequence[Mapping[str, Any]]) -> str:
    return clock(statistics.fmean(item["seconds"] for item in results))


def _mean_passes(runs: Sequence[Run]) -> str:
    counts = [run.backward_passes for run in runs]
    known = [count for count in counts if count is not None]
    return backward_passes(statistics.fmean(known) if len(known) == len(counts) else None)


def _span(texts: Sequence[str]) -> str:
    """The first and the last one, or one if they are the same."""
    return " to ".join(dict.fromkeys([texts[0], texts[-1]])) if texts else "–"


def _mean_speed(results: Sequence[Mapping[str, Any]]) -> str:
    """All images over all seconds."""
    timed = [item for item in results if item.get("images_per_second") and item["seconds"] > 0]
    if not timed:
        return "–"
    return pace(statistics.fmean((item["images_per_second"] for item in timed), (item["seconds"] for item in timed)))
