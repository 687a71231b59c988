"""Draws the results of `fasthebb bench run json=FILE`: accuracy against the seconds that a command takes.

    python scripts/plot_runs.py mnist5k_runs.json cifar10_runs.json runs.svg

A dot is the median of seconds and the mean of accuracies, with its standard deviation. matplotlib is needed;
fasthebb[report] installs it.
"""

import argparse
import json
import statistics
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

COLOURS = ("#0072b2", "#009e73", "#d55e00", "#888888", "#cc79a7")
SECONDS = (2, 5, 10, 20, 50, 100, 200, 500, 1000)


def draw(measured: list[dict], path: Path) -> None:
    figure = Figure(figsize=(4.6 * len(measured), 4.2), layout="constrained")
    for axes, result in zip(figure.subplots(1, len(measured), squeeze=False)[0], measured, strict=True):
        every = []
        for colour, (name, runs) in zip(COLOURS, result["runs"].items(), strict=False):
            points = sorted(
                (
                    statistics.median(point["seconds"] for point in points),
                    100 * statistics.fmean(point["top1"] for point in points),
                    100 * statistics.stdev(point["top1"] for point in points) if len(points) > 1 else 0,
                )
                for points in runs.values()
            )
            seconds, top1, spread = zip(*points, strict=True)
            every += seconds
            axes.errorbar(seconds, top1, spread, fmt="o-", color=colour, label=name, capsize=3, linewidth=1.2)
        axes.set_xscale("log")
        ticks = [tick for tick in SECONDS if min(every) / 1.5 <= tick <= 1.5 * max(every)]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="seconds from the start of the command", ylabel="top-1 on test images, %")
        axes.set_title(result["title"].replace(", ", ",\n", 1), fontsize=9)
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("measured", nargs="+", help="files that fasthebb bench run has written")
    parser.add_argument("picture", help="an SVG or PNG file")
    given = parser.parse_args()
    measured = []
    for name in given.measured:
        try:
            measured.append(json.loads(Path(name).read_text()))
            assert measured[-1]["runs"]
            assert measured[-1]["title"]
        except (OSError, ValueError, LookupError, TypeError, AssertionError):
            parser.error(f"{name}: not what `fasthebb bench run json={name}` writes")
    with matplotlib.rc_context({"svg.hashsalt": "fasthebb", "font.size": 10, "svg.fonttype": "none"}):
        draw(measured, Path(given.picture))


if __name__ == "__main__":
    main()
