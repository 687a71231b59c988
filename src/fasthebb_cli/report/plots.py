"""Figures as inline SVG. They are small enough for a telephone, and text and lines take the colour of the page.

Each figure is a whole `<svg>`; `page.py` makes the identifiers unique when it puts several on one page.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from fasthebb_cli.report.chains import SCRATCH
from fasthebb_cli.report.estimates import Estimate
from fasthebb_cli.report.grid import Grid, Method

INK = "#010203"  # a placeholder: `_svg` replaces it by the text colour of the page
# Okabe and Ito's colours, which colour-blind readers can tell apart; further methods get them with dashes
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c6bb1")
SCRATCH_COLOURS = ("#888888", "#a6761d", "#7f9f3f", "#b07d8a")  # muted, for training from scratch
DASHES = ("-", "--", ":", "-.")
MARKERS = "osD^vP"
STYLE: Any = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.15, "grid.color": INK, "text.color": INK,
    "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.titlesize": 10,
    "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 1.8, "lines.markersize": 4,
    "text.parse_math": False,  # a class may be called $x$
}  # fmt: skip
Curves = Mapping[str, Sequence[tuple[float, float]]]
Look = dict[str, Any]


def looks_of(methods: Sequence[Method]) -> dict[str, Look]:
    """Colour, dashes and marker of each method: unique, and the same in every figure; muted without pre-training."""
    looks: dict[str, Look] = {}
    colours: tuple[str, ...]
    learnt = scratch = 0
    for method in methods:
        if method.rule == SCRATCH:
            colours, number, dashed = SCRATCH_COLOURS, scratch, scratch
            scratch += 1
        else:
            colours, number, dashed = COLOURS, learnt, 0
            learnt += 1
        again = number // len(colours) + dashed
        look = {"linestyle": DASHES[again % len(DASHES)], "marker": MARKERS[again % len(MARKERS)]}
        looks[method.name] = {"color": colours[number % len(colours)], **look}
    return looks


def accuracy_figure(grid: Grid, metric: str, looks: Mapping[str, Look]) -> str:
    """Accuracy in % against the label fraction, with 95 % intervals where a method has several seeds."""
    with _figure(width=5.6, height=4.0) as (figure, axes):
        lows, highs = [], []
        for method in grid.methods:
            found = [(fraction, method.estimate(fraction, metric)) for fraction in grid.fractions]
            points = [(fraction, estimate) for fraction, estimate in found if estimate is not None]
            x = [100 * fraction for fraction, _ in points]
            y = [100 * estimate.mean for _, estimate in points]
            half = [100 * (estimate.half_width or 0.0) for _, estimate in points]
            axes.plot(x, y, label=method.name, **looks[method.name])
            axes.fill_between(
                x, [a - b for a, b in zip(y, half, strict=True)], [a + b for a, b in zip(y, half, strict=True)],
                color=looks[method.name]["color"], alpha=0.15, linewidth=0,
            )  # fmt: skip
            lows += y
            highs += y
        axes.set_xscale("log")
        ticks = _apart([100 * fraction for fraction in grid.fractions])
        axes.set_xticks(ticks, [_tick(grid, value) for value in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        margin = max(
            0.12 * (max(highs) - min(lows)), 1.0
        )  # from the means: the wide band of two seeds would flatten the curves
        axes.set_ylim(max(min(lows) - 2 * margin, 0), min(max(highs) + margin, 100.5))
        axes.set_xlabel("labels")
        axes.set_ylabel("accuracy in %")
        _legend(figure, axes)
        return _svg(figure)


def curves_figure(curves: Curves, x_label: str, y_label: str, looks: Mapping[str, Look], *, log: bool = False) -> str:
    """One line per name."""
    with _figure(width=4.6, height=3.3) as (figure, axes):
        for number, (name, points) in enumerate(curves.items()):
            look = looks.get(name) or {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // 7 % 4]}
            shown = {key: value for key, value in look.items() if key != "marker" or len(points) < 3}
            axes.plot([x for x, _ in points], [y for _, y in points], label=name, **shown)
        if log:
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _legend(figure, axes)
        return _svg(figure)


def layers_figure(accuracies: Mapping[str, Mapping[str, Estimate]], looks: Mapping[str, Look]) -> str:
    """Accuracy in % by layer, a line per method."""
    layers = list(dict.fromkeys(layer for by_layer in accuracies.values() for layer in by_layer))
    with _figure(width=4.6, height=3.3) as (figure, axes):
        for number, (name, by_layer) in enumerate(accuracies.items()):
            here = [layer for layer in layers if layer in by_layer]
            y = [100 * by_layer[layer].mean for layer in here]
            look = looks.get(name) or _look_by_rule(name, len(looks) + number)
            axes.plot([layers.index(layer) for layer in here], y, label=name, **look)
        axes.set_xticks(range(len(layers)), layers, rotation=30 if max(map(len, layers)) > 6 else 0)
        axes.set_ylabel("accuracy in %")
        _legend(figure, axes)
        return _svg(figure)


def _look_by_rule(name: str, number: int) -> Look:
    """The look of a name that is no method: a group of methods, or another classifier on a method's features."""
    is_scratch = name.replace(",", " ").split()[0] == SCRATCH
    colours = SCRATCH_COLOURS if is_scratch else COLOURS
    return {"color": colours[number % len(colours)], "linestyle": "--", "marker": MARKERS[number % len(MARKERS)]}


def confusion_figure(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """The counts (row: class, column: prediction) as % of the images of the class; numbers in them for few classes."""
    counts_CC = np.asarray(counts)
    rates_CC = 100 * counts_CC / counts_CC.sum(1, keepdims=True).clip(1)
    with _figure(width=4.6, height=4.6) as (figure, axes):
        axes.grid(visible=False)
        axes.imshow(rates_CC, cmap="Blues", vmin=0, vmax=100)
        if len(classes) <= 12:
            for (row, column), value in np.ndenumerate(rates_CC):
                if value >= 0.5:
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8,
                              color="white" if value > 55 else "#12385f")  # fmt: skip
        if len(classes) <= 30:
            long = max(map(len, classes)) > 3
            axes.set_xticks(range(len(classes)), classes, rotation=90 if long else 0)
            axes.set_yticks(range(len(classes)), classes)
        axes.set_xlabel("recognised as")
        axes.set_ylabel("class")
        return _svg(figure)


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of one plot; width and height in inches of 72 pixels."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def _legend(figure: Figure, axes: Axes) -> None:
    """A short legend goes into the plot, a long one below it."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max((len(label) for label in labels), default=0)
    if len(labels) < 2:
        return
    if len(labels) <= 6 and longest <= 16:
        axes.legend(loc="best")
        return
    columns = max(1, min(3, int(figure.get_figwidth() * 11 // (longest + 8))))
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _svg(figure: Figure) -> str:
    """The figure's <svg> element, as wide as its place, without what only a separate file needs."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "fasthebb"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser draws the letters
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    opening, rest = text.split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    text = opening + ">" + re.sub(r' id="[a-zA-Z][a-zA-Z0-9]*_\d+"', "", rest)
    return re.sub(r">\s+<", "><", text).strip()


def _apart(values: Sequence[float]) -> list[float]:
    """The values, of rising ones, whose labels have room on a logarithmic axis; always with the last one."""
    kept: list[float] = []
    for value in reversed(values):
        if not kept or kept[-1] / value >= 1.45 or (len(values) <= 4):
            kept.append(value)
    return kept[::-1]


def _tick(grid: Grid, value: float) -> str:
    labels = grid.labels(min(grid.fractions, key=lambda fraction: abs(100 * fraction - value)))
    return f"{value:g} %" + (f"\n{labels:,}" if labels else "")
