"""Draws top-1 accuracy against labels from the report.csv of `fasthebb report`, a panel a file.

    python scripts/plot_results.py digits=report/report.csv photographs=other/report.csv results.svg

Lines are means over seeds, bands the 95 % interval of the mean. matplotlib is needed; fasthebb[report] installs it.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
CONTROLS = {"random": "#777777", "none": "#000000"}
Curves = dict[str, list[tuple[int, float, float]]]


def read(path: Path) -> Curves:
    """Method -> (labels, mean in %, half of the interval in %), by labels."""
    curves: Curves = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["metric"] == "top1" and row["split"] == "test" and row["mean"]:
                interval = 100 * float(row["ci95"]) if row["ci95"] else 0.0
                curves[row["method"]].append((int(row["labels"]), 100 * float(row["mean"]), interval))
    return {method: sorted(points) for method, points in curves.items()}


def panel(axes: Axes, title: str, curves: Curves, colours: dict[str, str]) -> None:
    for method, points in curves.items():
        labels, means, intervals = zip(*points, strict=True)
        axes.plot(labels, means, "o-", color=colours[method], markersize=4, label=method)
        low = [mean - half for mean, half in zip(means, intervals, strict=True)]
        high = [mean + half for mean, half in zip(means, intervals, strict=True)]
        axes.fill_between(labels, low, high, color=colours[method], alpha=0.15, linewidth=0)
    ticks = sorted({point[0] for points in curves.values() for point in points})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(title=title, xlabel="labelled images", ylabel="top-1 %")
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def draw(panels: dict[str, Curves], path: Path) -> None:
    methods = list(dict.fromkeys(method for curves in panels.values() for method in curves))
    free = iter(COLOURS)
    colours = {method: CONTROLS.get(method.partition(",")[0]) or next(free) for method in methods}
    figure = Figure(figsize=(4.5 * len(panels), 3.8), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        panel(axes, title, curves, colours)
        axes.legend(frameon=False, loc="best")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("panels", nargs="+", help="TITLE=report.csv")
    parser.add_argument("figure", type=Path, help="the file to draw: .svg, .png or .pdf")
    arguments = parser.parse_args()
    panels = {}
    for word in arguments.panels:
        title, equals, file = word.partition("=")
        try:
            panels[title] = read(Path(file))
        except (OSError, KeyError, ValueError):
            parser.error(f"{word}: give a title and the report.csv that `fasthebb report` writes")
        if not equals or not panels[title]:
            parser.error(f"{word}: there is no accuracy on test images")
    if len({method for curves in panels.values() for method in curves}) > len(COLOURS):
        parser.error(f"at most {len(COLOURS)} methods")
    with matplotlib.rc_context({"svg.hashsalt": "fasthebb", "font.size": 10, "svg.fonttype": "none"}):
        draw(panels, arguments.figure)
