"""The content of a report on one grid, as plain values for the templates: text, tables, SVG and PNG."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fasthebb.stage_files import read_bytes
from fasthebb_cli.console.formats import short
from fasthebb_cli.report import tables
from fasthebb_cli.report.answers import Answer, answers, answers_on_learning, verdict, verdict_on_learning
from fasthebb_cli.report.chains import METRICS, setting_text
from fasthebb_cli.report.directories import StageDirectory
from fasthebb_cli.report.grid import Grid, Method, Run
from fasthebb_cli.report.layers import RETRIEVAL, Layers
from fasthebb_cli.report.plots import Look, accuracy_figure, confusion_figure, curves_figure, layers_figure, looks_of
from fasthebb_cli.report.recipes import command_of
from fasthebb_cli.report.texts import budget_text, percent_label
from fasthebb_cli.run.directory import FILTERS_FILE
from fasthebb_cli.settings.conf import conf_directory


@dataclass(frozen=True)
class Figure:
    """An image: `svg` (an element), or `png` (in base64)."""

    caption: str
    svg: str = ""
    png: str = ""


@dataclass(frozen=True)
class AccuracyTable:
    """The table of one metric: columns are (fraction, labels) as text, rows are a method's name with its cells."""

    metric: str
    columns: list[tuple[str, str]]
    rows: list[tuple[str, list[tables.Cell]]]


@dataclass(frozen=True)
class LayerTable:
    """Accuracy of classifiers on each layer, as a figure and as a table."""

    budget: str
    figure: Figure
    columns: list[str]
    rows: list[tuple[str, list[tables.Cell]]]


@dataclass(frozen=True)
class Section:
    """All that the report says about one grid."""

    title: str
    verdict: str
    answers: list[Answer]
    verdict_on_learning: str
    answers_on_learning: list[Answer]
    tables: list[AccuracyTable]
    calibration: AccuracyTable | None
    figures: list[Figure]
    layers: LayerTable | None
    times: list[dict[str, str]]
    curves: list[Figure]
    filters: list[Figure]
    confusions: list[Figure]
    commands: list[tuple[str, str]]
    settings: list[tuple[str, list[str]]]
    shared: list[tuple[str, str]]
    made_with: list[str]
    missing: list[str]
    choosing: list[str]
    notes: list[str] = field(default_factory=list)


def build_section(grid: Grid, layers: Layers | None, unfinished: Sequence[str]) -> Section:
    """The section of a grid.

    Args:
        unfinished: a line for each stage on its data set that was begun and is not finished.
    """
    looks = looks_of(grid.main)
    found, on_learning = answers(grid), answers_on_learning(grid)
    columns = [(percent_label(fraction), f"{grid.labels(fraction) or 0:,}") for fraction in grid.fractions]
    calibration = tables.calibration_rows(grid)
    differing, shared = _settings(grid.main)
    superseded = [f"{grid.superseded} earlier runs of the same cells are left out; the latest count."]
    return Section(
        title=grid.title,
        verdict=verdict(found),
        answers=found,
        verdict_on_learning=verdict_on_learning(on_learning),
        answers_on_learning=on_learning,
        tables=[AccuracyTable(METRICS[name], columns, tables.accuracy_rows(grid, name)) for name in grid.metrics],
        calibration=AccuracyTable("calibration error", columns, calibration) if calibration else None,
        figures=[Figure(_accuracy_caption(grid), accuracy_figure(grid, "top1", looks))] if grid.metrics else [],
        layers=_layers(layers, looks) if layers else None,
        times=tables.time_rows(grid),
        curves=_learning_curves(grid, looks),
        filters=_filters(grid),
        confusions=_confusions(grid),
        commands=_commands(grid),
        settings=differing,
        shared=shared,
        made_with=_made_with(grid),
        missing=[*tables.missing_lines(grid), *unfinished],
        choosing=tables.choosing_lines(grid),
        notes=superseded if grid.superseded else [],
    )


def _layers(layers: Layers, looks: Mapping[str, Look]) -> LayerTable:
    by_layer = layers.estimates()
    columns, rows = tables.layer_rows(by_layer)
    drawn = {name: values for name, values in by_layer.items() if not name.endswith(RETRIEVAL)}
    svg = layers_figure(drawn, looks) if drawn else ""
    figure = Figure("Accuracy of a classifier on each layer, mean over seeds.", svg)
    return LayerTable(budget_text(layers.fraction, layers.labels), figure, columns, rows)


def _commands(grid: Grid) -> list[tuple[str, str]]:
    named = [(method.name, method) for method in grid.methods]
    named += [(f"{method.name}, by layer", method) for method in grid.probes]
    return [(name, command) for name, method in named if (command := command_of(method, conf_directory()))]


def _accuracy_caption(grid: Grid) -> str:
    counts = {len(runs) for method in grid.methods for runs in method.runs.values()}
    seeds = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return f"Top-1 accuracy by label budget; bands are 95 % confidence intervals over {seeds} seeds."


def _learning_curves(grid: Grid, looks: Mapping[str, Look]) -> list[Figure]:
    figures = []
    for fraction in dict.fromkeys((grid.fractions[0], grid.fractions[-1]) if grid.methods else ()):
        stages = {method.name: stage for method in grid.methods
                  if (run := _first(method, fraction)) and (stage := run.fine_tuned)}  # fmt: skip
        for key, label in (("train_loss", "training loss"), ("train_top1", "training accuracy in %")):
            scale = 100 if "top1" in key else 1
            curves = {
                name: [(epoch["epoch"], scale * epoch[key]) for epoch in stage.epochs if epoch.get(key) is not None]
                for name, stage in stages.items()
            }
            curves = {name: points for name, points in curves.items() if points}
            if curves:
                caption = (
                    f"Fine-tuning on {budget_text(fraction, grid.labels(fraction))}, seed {_seeds(stages)}: {label}."
                )
                figures.append(Figure(caption, curves_figure(curves, "epoch", label, looks)))
    for method in grid.main:
        run = next(iter(method.all_runs()), None)
        stage = run.pretrained if run else None
        updates: dict[str, list[tuple[float, float]]] = {}
        for epoch in stage.epochs if stage else []:
            for layer, values in (epoch.get("layers") or {}).items():
                if values.get("update"):
                    updates.setdefault(layer, []).append((epoch["epoch"], values["update"]))
        if stage and updates:
            caption = f"Pre-training, {method.name}, seed {stage.results['seed']}: how far a step moves each layer."
            figures.append(Figure(caption, curves_figure(updates, "epoch", "update a step", {}, log=True)))
    return figures


def _filters(grid: Grid) -> list[Figure]:
    """The filters of the lowest seed after pre-training, or if there was none, after fine-tuning on the most labels."""
    figures = []
    for method in grid.main:
        most = max(method.runs)
        run = _first(method, most)
        stage = (run.pretrained or run.fine_tuned) if run else None
        if stage is None:
            continue
        try:
            png = base64.b64encode(read_bytes(stage.path / FILTERS_FILE)).decode()
        except (OSError, ValueError):
            continue
        how = "pre-training" if stage.pretrains else f"fine-tuning on {budget_text(most, grid.labels(most))}"
        figures.append(Figure(f"{method.name}, after {how}, seed {stage.results['seed']}.", png=png))
    return figures


def _confusions(grid: Grid) -> list[Figure]:
    """Each method's confusion matrix, summed over seeds, at its largest label fraction that has one."""
    figures = []
    for method in grid.methods:
        for fraction in sorted(method.runs, reverse=True):
            found = [run.results for run in method.runs[fraction].values() if run.results.get("confusion")]
            if found:
                counts = np.sum([results["confusion"] for results in found], axis=0).tolist()
                classes = [short(str(name)) for name in found[0].get("classes") or range(len(counts))]
                where = f"{method.name}, {budget_text(fraction, grid.labels(fraction))}, n = {len(found)}"
                caption = f"{where}: of the images of a class (row), how many % are recognised as which."
                figures.append(Figure(caption, confusion_figure(counts, classes)))
                break
    return figures


def _settings(methods: list[Method]) -> tuple[list[tuple[str, list[str]]], list[tuple[str, str]]]:
    """Each method's settings of the keys in which methods differ, and the settings that all methods share."""
    keys = list(dict.fromkeys(key for method in methods for key in sorted(method.settings)))
    common = [key for key in keys if len({repr(method.settings.get(key, "absent")) for method in methods}) == 1]
    differing = [
        (method.name, [f"{key}={setting_text(method.settings, key)}" for key in sorted(method.settings)
                       if key not in common])
        for method in methods
    ]  # fmt: skip
    return differing, [(key, setting_text(methods[0].settings, key)) for key in sorted(common)]


def _made_with(grid: Grid) -> list[str]:
    """A line for each combination of versions and device, with how many runs it made."""
    lines = Counter[str]()
    for method in [*grid.methods, *grid.probes]:
        for run in method.all_runs():
            versions = ", ".join(f"{name} {version}" for name, version in run.results.get("versions", {}).items())
            lines[f"{versions}; {run.results.get('device', '')}"] += 1
    return [f"{line} ({count:,} runs)" for line, count in lines.items()]


def _first(method: Method, fraction: float) -> Run | None:
    """The run of the lowest seed."""
    runs = method.runs.get(fraction, {})
    return runs[min(runs)] if runs else None


def _seeds(stages: Mapping[str, StageDirectory]) -> str:
    return ", ".join(map(str, sorted({stage.results["seed"] for stage in stages.values()})))
