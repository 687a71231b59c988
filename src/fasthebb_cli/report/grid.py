"""Finished runs as grids: one per data set and split, with a cell per method and label fraction, values by seed.

Accuracy comes from evaluate stages; where there are none, probes make a grid that has accuracies by layer alone.
Numbers of different images are never put side by side.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fasthebb_cli.report.chains import SCRATCH, Index, Settings, method_of, name_methods, settings_of
from fasthebb_cli.report.directories import StageDirectory
from fasthebb_cli.report.estimates import Difference, Estimate, estimate, paired_difference

METRICS = {"top1": "top-1", "top5": "top-5"}
SPLITS = ("test", "validation")


@dataclass(frozen=True)
class Run:
    """One accuracy and the stages that led to it, the evaluation or probe last."""

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

    def stage(self, kind: str) -> StageDirectory | None:
        """The last stage of a kind."""
        return next((item for item in reversed(self.chain) if item.kind == kind), None)


@dataclass(frozen=True)
class Method:
    """What was done, and every run of it: runs[fraction][seed]."""

    name: str
    settings: Settings
    runs: dict[float, dict[int, Run]] = field(default_factory=dict)

    @property
    def rule(self) -> str:
        return str(self.settings.get("rule.name"))

    def values(self, fraction: float, metric: str) -> dict[int, float]:
        """By seed, in [0, 1]; those that don't have the metric are left out."""
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
        images: how many were measured on; None: not written down.
        superseded: runs left out because a later one has the same method, fraction and seed.
    """

    dataset: str
    split: str
    images: int | None
    methods: list[Method]
    superseded: int = 0

    @property
    def title(self) -> str:
        count = f" of {self.images:,} images" if self.images else ""
        return f"{self.dataset}, {self.split} split{count}"

    @property
    def fractions(self) -> list[float]:
        return sorted({fraction for method in self.methods for fraction in method.runs})

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for method in self.methods for run in method.all_runs()})

    @property
    def metrics(self) -> list[str]:
        """Those that any run has; none if only layers were measured."""
        return [metric for metric in METRICS if any(m.values(f, metric) for m in self.methods for f in self.fractions)]

    def labels(self, fraction: float) -> int | None:
        """Labels that are trained on at a fraction: the commonest count."""
        counts = [run.results["labels_train"] for run in self._runs(fraction) if run.results.get("labels_train")]
        return statistics.mode(counts) if counts else None

    def best(self, fraction: float, metric: str, accept: Callable[[Method], bool] = lambda _: True) -> Method | None:
        """The method of the highest mean at a fraction, of those accepted; only those with the most seeds count.

        One try at other settings on a lucky seed would win over the mean of five.
        """
        found = [(estimate, method) for method in self.methods
                 if accept(method) and (estimate := method.estimate(fraction, metric))]  # fmt: skip
        most = max((estimate.n for estimate, _ in found), default=0)
        means = [(estimate.mean, method) for estimate, method in found if estimate.n == most]
        return max(means, key=lambda item: item[0])[1] if means else None

    def baseline(self, method: Method, fraction: float, metric: str) -> Method | None:
        """What a method is compared with: the best without pre-training, or where there is none the best other one."""
        if any(other.rule == SCRATCH for other in self.methods):
            found = self.best(fraction, metric, lambda other: other.rule == SCRATCH)
        else:
            found = self.best(fraction, metric, lambda other: other is not method)
        return found if found is not method else None

    def difference(self, method: Method, fraction: float, metric: str) -> Difference | None:
        """To the baseline; None if there is none or no common seed."""
        baseline = self.baseline(method, fraction, metric)
        if baseline is None:
            return None
        return paired_difference(method.values(fraction, metric), baseline.values(fraction, metric))

    def missing(self) -> dict[str, dict[float, list[int]]]:
        """By method and fraction the seeds that any cell of the grid has, and this one hasn't."""
        missing: dict[str, dict[float, list[int]]] = {}
        for method in self.methods:
            for fraction in self.fractions:
                absent = sorted(set(self.seeds) - set(method.runs.get(fraction, {})))
                if absent:
                    missing.setdefault(method.name, {})[fraction] = absent
        return missing

    def _runs(self, fraction: float) -> list[Run]:
        return [run for method in self.methods for run in method.runs.get(fraction, {}).values()]


def build_grids(directories: Sequence[StageDirectory], index: Index) -> list[Grid]:
    """The grids of all finished evaluations, and of probes where nothing was evaluated; test before validation."""
    finished = [item for item in directories if item.state == "finished"]
    evaluations = [item for item in finished if item.kind == "evaluate" and item.results.get("top1") is not None]
    evaluated = {place_of(item) for item in evaluations}
    probes = [item for item in finished if has_layers(item) and place_of(item) not in evaluated]
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for directory in [*evaluations, *probes]:
        chain = index.chain(directory)
        key = (*place_of(directory), directory.content.get("dataset.images"), directory.results.get("samples"))
        groups.setdefault(key, []).append(Run(chain, settings_of(chain)))
    ordered = sorted(groups, key=lambda key: (str(key[0]), SPLITS.index(key[1]) if key[1] in SPLITS else 2, str(key)))
    return [_grid(str(key[0]), str(key[1]), key[3], groups[key]) for key in ordered]


def has_layers(directory: StageDirectory) -> bool:
    """Whether a stage measured every layer by itself."""
    return isinstance(directory.results.get("layers"), dict)


def place_of(directory: StageDirectory) -> tuple[str, str]:
    """Data set and split."""
    return str(directory.results["dataset"]), str(directory.results.get("split") or "test")


def _grid(dataset: str, split: str, images: int | None, runs: Sequence[Run]) -> Grid:
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
    methods.sort(key=lambda method: (method.rule == SCRATCH, method.name))
    return Grid(dataset, split, images, methods, superseded)
