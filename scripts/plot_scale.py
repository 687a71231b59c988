"""Draws the results of `fasthebb bench scale json=FILE`: time of a step against images in a batch and units of a layer.

    python scripts/plot_scale.py conv6_hpca_scale.json conv6_swta_scale.json scale.svg

Dashed lines are proportional growth up to the last point. matplotlib is needed; fasthebb[report] installs it.
"""

import argparse
import json
import math
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

PANELS = {"batch_size": "images in a batch, {model}", "units": "units of a wide layer, {batch_size} images"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def draw(measured: list[dict], path: Path) -> None:
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, (axis, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        highest, lowest = 0.0, math.inf
        for colour, result in zip(COLOURS, measured, strict=False):
            points = {int(point): milliseconds for point, milliseconds in result["axes"][axis].items()}
            x, y = list(points), list(points.values())
            highest, lowest = max(highest, *y), min(lowest, *y)
            axes.loglog(x, y, "o-", color=colour, label=result["rule"])
            axes.loglog(x, [y[-1] * value / x[-1] for value in x], "--", color=colour, linewidth=0.8, alpha=0.6)
        axes.set_xticks(x, [f"{value:,}" for value in x])
        axes.xaxis.set_minor_locator(NullLocator())
        ticks = [tick for tick in (2, 5, 10, 20, 50, 100, 200, 500, 1000) if lowest / 2 <= tick <= 3 * highest]
        axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set(xlabel=label.format_map(measured[0]), ylabel="ms per step")
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", nargs="+", type=Path, help="the results of bench scale, one file per rule")
    parser.add_argument("figure", type=Path, help="the file to draw: .svg, .png or .pdf")
    arguments = parser.parse_args()
    if len(arguments.json) > len(COLOURS):
        parser.error(f"at most {len(COLOURS)} files")
    measured = []
    for path in arguments.json:
        try:
            measured.append(json.loads(path.read_text()))
            measured[-1]["axes"]
        except (OSError, ValueError, KeyError):
            parser.error(f"{path}: not what `fasthebb bench scale json={path}` writes")
    with matplotlib.rc_context({"svg.hashsalt": "fasthebb", "font.size": 10, "svg.fonttype": "none"}):
        draw(measured, arguments.figure)
