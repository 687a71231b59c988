"""report.csv: one row per data set, split, metric, method and label fraction. Accuracies are in [0, 1]."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from fasthebb_cli.console.formats import cell_text
from fasthebb_cli.report.chains import METRICS
from fasthebb_cli.report.estimates import Estimate
from fasthebb_cli.report.grid import Grid, Method
from fasthebb_cli.report.layers import Layers
from fasthebb_cli.report.tables import CALIBRATION, calibration_rows

COLUMNS = (
    "dataset", "split", "images", "method", "label_fraction", "labels", "metric", "n", "mean", "ci95", "sd",
    "baseline", "difference", "p", "n_paired", "seeds", "values",
)  # fmt: skip

Row = dict[str, Any]


def csv_text(rows: Sequence[Row]) -> str:
    """The rows below a line of column names; what a row has no value for stays empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: cell_text(value) if isinstance(value, str) else value for key, value in row.items()}
                     for row in rows)  # fmt: skip
    return buffer.getvalue()


def accuracy_rows(grid: Grid) -> list[Row]:
    """One row per metric, method and fraction."""
    metrics = [*grid.metrics, CALIBRATION] if calibration_rows(grid) else grid.metrics
    return [
        _accuracy_row(grid, metric, method, fraction)
        for metric in metrics for method in grid.methods for fraction in grid.fractions
    ]  # fmt: skip


def layer_rows(grid: Grid, layers: Layers) -> list[Row]:
    """One row per method and layer."""
    shared = _place(grid) | {"label_fraction": layers.fraction, "labels": layers.labels}
    return [
        shared | {"method": name, "metric": f"by layer: {layer}"} | _statistics(layers.values[name][layer], found)
        for name, by_layer in layers.estimates().items() for layer, found in by_layer.items()
    ]  # fmt: skip


def _accuracy_row(grid: Grid, metric: str, method: Method, fraction: float) -> Row:
    values, value = method.values(fraction, metric), method.estimate(fraction, metric)
    baseline = difference = None
    if metric in METRICS:
        baseline, difference = grid.baseline(method, fraction, metric), grid.difference(method, fraction, metric)
    return _place(grid) | _statistics(values, value) | {
        "method": method.name,
        "label_fraction": fraction,
        "labels": grid.labels(fraction),
        "metric": metric,
        "baseline": baseline.name if baseline and value else None,
        "difference": _rounded(round(difference.mean, 12) + 0.0 if difference else None),  # 0.0 where rounding is left
        "p": _rounded(difference.p if difference else None),
        "n_paired": difference.n if difference else None,
    }  # fmt: skip


def _place(grid: Grid) -> Row:
    return {"dataset": grid.dataset, "split": grid.split, "images": grid.images}


def _statistics(values: Mapping[int, float], value: Estimate | None) -> Row:
    return {
        "n": len(values),
        "mean": _rounded(value.mean if value else None),
        "ci95": _rounded(value.half_width if value else None),
        "sd": _rounded(value.deviation if value else None),
        "seeds": " ".join(map(str, sorted(values))),
        "values": " ".join(f"{values[seed]:.6g}" for seed in sorted(values)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
