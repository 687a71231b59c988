"""Finished runs as grids: one grid per data set and split, a cell per method and label fraction, values by seed.

Accuracy comes from evaluate stages, accuracy by layer from probes. Probes alone make a grid, too. One grid never mixes
measurements on different images.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fasthebb_cli.console.spent import backward_passes_of
from fasthebb_cli.console.view import is_imbalanced
from fasthebb_cli.report.chains import (
    BALANCED,
    METRICS,
    RANDOM,
    SCRATCH,
    WAY,
    Index,
    Settings,
    method_of,
    name_methods,
    settings_of,
)
from fasthebb_cli.report.directories import StageDirectory
from fasthebb_cli.report.estimates import Difference, Estimate, estimate, paired_difference

SPLITS = ("test", "validation")
LEFT_OUT = "left_out"
LISTED, FIT = "dataset.labelled", "dataset.fit"  # keys of a stage's content, which few have


@dataclass(frozen=True)
class Run:
    """One accuracy and the chain of stages that led to it. The evaluation or probe is the last of the chain."""

    chain: list[StageDirectory]
    settings: Settings

    @property
    def results(self) -> dict[str, Any]:
        return self.chain[-1].results

    @property
    def fraction(self) -> float:
        return float(self.settings.get("label_fraction", self.results["label_fraction"]))

    @property
    def seed(self) -> int:
        return int(self.results["seed"])

    @property
    def pretrained(self) -> StageDirectory | None:
        """The last stage in which the rule alone taught the network."""
        return next((item for item in reversed(self.chain) if item.pretrains), None)

    @property
    def fine_tuned(self) -> StageDirectory | None:
        """The last stage that made a classifier from labels."""
        return next((item for item in reversed(self.chain) if item.fine_tuning), None)

    @property
    def is_by_backprop(self) -> bool:
        """Backward passes trained the classifier."""
        return self.fine_tuned is not None and bool(
            self.fine_tuned.fine_tuning and self.fine_tuned.fine_tuning.backprop
        )

    @property
    def backward_passes(self) -> int | None:
        """Images that went through one in all stages; None: a stage of an earlier version did not count."""
        return backward_passes_of([item.results | {"measures": item.measures} for item in self.chain])


@dataclass(frozen=True)
class Method:
    """One method, and every run of it: runs[fraction][seed]."""

    name: str
    settings: Settings
    runs: dict[float, dict[int, Run]] = field(default_factory=dict)

    @property
    def rule(self) -> str:
        return str(self.settings.get("rule.name"))

    @property
    def spoken(self) -> str:
        """The name within a sentence: hpca with closed form."""
        way = self.settings.get(WAY)
        return self.name.replace(f", {way}", f" with {way}", 1)

    @property
    def is_by_backprop(self) -> bool:
        return any(run.is_by_backprop for run in self.all_runs())

    @property
    def but_filters(self) -> Settings:
        """The settings of network, fine-tuning and measurement: all but those that say where the filters come from."""
        return {key: value for key, value in self.settings.items() if not key.startswith(("rule.", "pretrain"))}

    def values(self, fraction: float, metric: str) -> dict[int, float]:
        """The metric by seed, in [0, 1]. Runs without the metric are left out."""
        runs = self.runs.get(fraction, {})
        return {seed: run.results[metric] for seed, run in runs.items() if run.results.get(metric) is not None}

    def estimate(self, fraction: float, metric: str) -> Estimate | None:
        values = self.values(fraction, metric)
        return estimate(list(values.values())) if values else None

    def all_runs(self) -> list[Run]:
        """Ordered by fraction, then seed."""
        return [self.runs[fraction][seed] for fraction in sorted(self.runs) for seed in sorted(self.runs[fraction])]


@dataclass(frozen=True)
class Grid:
    """All methods on one data set and split.

    Args:
        images: how many images were measured; None: the results don't say.
        probes: the methods that were measured layer by layer, on the same images.
        superseded: how many runs are left out because a later run has the same method, fraction and seed.
        note: what tells it from others of the same data set and split: a list of labels, or how images are fitted.
    """

    dataset: str
    split: str
    images: int | None
    methods: list[Method]
    probes: list[Method] = field(default_factory=list)
    superseded: int = 0
    note: str = ""

    @property
    def title(self) -> str:
        count = f" of {self.images:,} images" if self.images else ""
        return f"{self.dataset}, {self.split} split{count}{self.note}"

    @property
    def main(self) -> list[Method]:
        """The evaluated methods; if there are none, the probed ones."""
        return self.methods or self.probes

    @property
    def fractions(self) -> list[float]:
        return sorted({fraction for method in self.methods for fraction in method.runs})

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for method in self.methods for run in method.all_runs()})

    @property
    def metrics(self) -> list[str]:
        """The metrics that any run has; empty if only layers were measured. Balanced accuracy, where it differs."""
        runs = [run.results for method in self.methods for run in method.all_runs()]
        differs = any(is_imbalanced(results) for results in runs)
        metrics = [metric for metric in METRICS if metric != BALANCED or differs]
        return [metric for metric in metrics if any(results.get(metric) is not None for results in runs)]

    def labels(self, fraction: float) -> int | None:
        """How many labels are trained on at a fraction: the most common count."""
        return labels_of([run for method in self.methods for run in method.runs.get(fraction, {}).values()])

    def best(self, fraction: float, metric: str, accept: Callable[[Method], bool] = lambda _: True) -> Method | None:
        """The method with the highest mean at a fraction, among its `rivals`."""
        rivals = self.rivals(fraction, metric, accept)
        return max(rivals, key=lambda item: item[0])[1] if rivals else None

    def rivals(
        self, fraction: float, metric: str, accept: Callable[[Method], bool] = lambda _: True
    ) -> list[tuple[float, Method]]:
        """The accepted methods that have the most seeds at a fraction, and their means.

        Fewer seeds don't count: one lucky seed of other settings could beat the mean of five.
        """
        found = [(estimate, method) for method in self.methods
                 if accept(method) and (estimate := method.estimate(fraction, metric))]  # fmt: skip
        most = max((estimate.n for estimate, _ in found), default=0)
        return [(estimate.mean, method) for estimate, method in found if estimate.n == most]

    def is_scratch(self, method: Method) -> bool:
        """Whether a method has no pre-training: by backprop, or if none of these is, by another classifier."""
        scratch = [other for other in self.methods if other.rule == SCRATCH]
        return method.rule == SCRATCH and (method.is_by_backprop or not any(other.is_by_backprop for other in scratch))

    def control(self, method: Method, fraction: float) -> Method | None:
        """Random filters with the same network and the same fine-tuning; None: there are none at this fraction."""
        alike = [other for other in self.methods if other.rule == RANDOM and other.but_filters == method.but_filters]
        return next((other for other in alike if fraction in other.runs), None)

    def baseline(self, method: Method, fraction: float, metric: str) -> Method | None:
        """The method to compare with: the best without pre-training, or if there is none, the best other method."""
        if any(map(self.is_scratch, self.methods)):
            found = self.best(fraction, metric, self.is_scratch)
        else:
            found = self.best(fraction, metric, lambda other: other is not method)
        return found if found is not method else None

    def difference(self, method: Method, fraction: float, metric: str) -> Difference | None:
        """The difference to the baseline; None if there is no baseline or no common seed."""
        baseline = self.baseline(method, fraction, metric)
        if baseline is None:
            return None
        return paired_difference(method.values(fraction, metric), baseline.values(fraction, metric))

    def missing(self) -> dict[str, dict[float, list[int]]]:
        """The missing seeds, by method and fraction: those that some cell of the grid has and this cell has not."""
        missing: dict[str, dict[float, list[int]]] = {}
        for method in self.methods:
            for fraction in self.fractions:
                absent = sorted(set(self.seeds) - set(method.runs.get(fraction, {})))
                if absent:
                    missing.setdefault(method.name, {})[fraction] = absent
        return missing


def build_grids(directories: Sequence[StageDirectory], index: Index) -> list[Grid]:
    """The grids of all finished evaluations and probes. The test split comes before the validation split.

    What was measured on labels that were left out is no part of them: each fold has a few images of its own, and
    `fasthebb advise` brings them together.
    """
    finished = [item for item in directories if item.state == "finished" and not measures_left_out(item)]
    evaluations = [item for item in finished if item.measures and item.results.get("top1") is not None]
    probes = [item for item in finished if isinstance(item.results.get("layers"), dict)]
    groups: dict[tuple[Any, ...], tuple[list[Run], list[Run]]] = {}
    for kind, found in enumerate((evaluations, probes)):
        for directory in found:
            run = Run(chain := index.chain(directory), settings_of(chain))
            groups.setdefault(_place(run), ([], []))[kind].append(run)
    ordered = sorted(groups, key=lambda key: (str(key[0]), SPLITS.index(key[1]) if key[1] in SPLITS else 2, str(key)))
    grids = [_grid(key, *groups[key]) for key in ordered]
    titles = Counter(grid.title for grid in grids)
    return [
        grid if titles[grid.title] == 1 else replace(grid, note=f"{grid.note}, images {str(key[2])[:6]}")
        for key, grid in zip(ordered, grids, strict=True)
    ]


def measures_left_out(item: StageDirectory) -> bool:
    return item.results.get("split") == LEFT_OUT


def labels_of(runs: Sequence[Run]) -> int | None:
    """How many labels were trained on: the most common count; None: without labels."""
    counts = [run.results["labels_train"] for run in runs if run.results.get("labels_train")]
    return statistics.mode(counts) if counts else None


def _place(run: Run) -> tuple[Any, ...]:
    """Data set, split, digest of its files, how many images were measured and how they are fitted, a list of labels."""
    results, content = run.results, run.chain[-1].content
    split = str(results.get("split") or "test")
    listed = next((item.content[LISTED] for item in run.chain if LISTED in item.content), None)
    return (
        str(results["dataset"]), split, content.get("dataset.images"), results.get("samples"), content.get(FIT), listed,
    )  # fmt: skip


def _grid(place: tuple[Any, ...], evaluations: Sequence[Run], probes: Sequence[Run]) -> Grid:
    dataset, split, _, images, fit, listed = place
    note = f", {fit}" if fit else ""
    note += f", labels listed: {listed}" if listed else ""
    methods, superseded = _methods(evaluations)
    probed, superseded_probes = _methods(probes)
    return Grid(dataset, split, images, methods, probed, superseded + superseded_probes, note)


def _methods(runs: Sequence[Run]) -> tuple[list[Method], int]:
    """The methods with the latest run of each fraction and seed, and how many earlier runs were left out."""
    gathered: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: str(run.results.get("finished", ""))):
        gathered.setdefault(repr(sorted(method_of(run.settings).items())), []).append(run)
    groups = list(gathered.values())
    names = name_methods([method_of(group[0].settings) for group in groups])
    methods = [Method(name, method_of(group[0].settings)) for name, group in zip(names, groups, strict=True)]
    superseded = 0
    for method, group in zip(methods, groups, strict=True):
        for run in group:
            cell = method.runs.setdefault(run.fraction, {})
            superseded += run.seed in cell
            cell[run.seed] = run
    controls = (RANDOM, SCRATCH)  # below all others
    methods.sort(key=lambda method: (controls.index(method.rule) if method.rule in controls else -1, method.name))
    return methods, superseded
