"""Accuracy by layer: from probes, and from sweeps of `finetune.layer`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fasthebb_cli.report.chains import name_methods
from fasthebb_cli.report.estimates import Estimate, estimate
from fasthebb_cli.report.grid import Grid, Method, Run, labels_of

LAYER = "finetune.layer"
RETRIEVAL = ", retrieval (mAP)"
# A probe's scores -> what each adds to the method's name. The linear classifier is the usual one and adds nothing
HEADS = {"top1": "", "hebbian": ", Hebbian classifier", "knn": ", k-NN", "svm": ", SVM", "retrieval": RETRIEVAL}


@dataclass(frozen=True)
class Layers:
    """Accuracies of classifiers on each layer at one label fraction: values[method][layer][seed], in [0, 1]."""

    fraction: float
    labels: int | None
    values: dict[str, dict[str, dict[int, float]]]

    def estimates(self) -> dict[str, dict[str, Estimate]]:
        return {name: {layer: estimate(list(by_seed.values())) for layer, by_seed in by_layer.items()}
                for name, by_layer in self.values.items()}  # fmt: skip


def accuracies_by_layer(grid: Grid) -> Layers | None:
    """The accuracies at the largest label fraction at which single layers were measured; None: at no fraction."""
    swept = _swept(grid.methods)
    measured = [method for _, group in swept for method in group] + grid.probes
    most = max((fraction for method in measured for fraction in method.runs), default=None)
    if most is None:
        return None
    values: dict[str, dict[str, dict[int, float]]] = {}
    for name, group in swept:
        for method in group:
            found = method.values(most, "top1")
            if found:
                values.setdefault(name, {})[str(method.settings[LAYER])] = found
    taken = {name for name, _ in swept}
    for method in grid.probes:
        name = f"{method.name}, probed" if method.name in taken else method.name
        for seed, run in method.runs.get(most, {}).items():
            for layer, head, value in _scores(run):
                values.setdefault(name + HEADS[head], {}).setdefault(layer, {})[seed] = value
    runs = [run for method in measured for run in method.runs.get(most, {}).values()]
    return Layers(most, labels_of(runs), values) if values else None


def _scores(run: Run) -> list[tuple[str, str, float]]:
    """(layer, head, accuracy) from a results.json with `layers: {name: {top1: ...}}`."""
    layers: dict[str, Any] = run.results["layers"]
    return [
        (str(layer), head, float(scores[head]))
        for layer, scores in layers.items() if isinstance(scores, dict)
        for head in HEADS if scores.get(head) is not None
    ]  # fmt: skip


def _swept(methods: Sequence[Method]) -> list[tuple[str, list[Method]]]:
    """Groups of methods that differ in `finetune.layer` only, sorted by it; each group with a name."""
    groups: dict[str, list[Method]] = {}
    for method in methods:
        if method.settings.get(LAYER) is not None:
            groups.setdefault(repr(sorted(_but_layer(method).items())), []).append(method)
    swept = [sorted(group, key=lambda method: str(method.settings[LAYER]))
             for group in groups.values() if len(group) > 1]  # fmt: skip
    return list(zip(name_methods([_but_layer(group[0]) for group in swept]), swept, strict=True))


def _but_layer(method: Method) -> dict[str, Any]:
    return {key: value for key, value in method.settings.items() if key != LAYER}
