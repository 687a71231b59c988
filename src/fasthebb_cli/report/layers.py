"""Accuracy by layer: from stages that measured a classifier on each, or from a sweep of finetune.layer."""

from collections.abc import Mapping, Sequence
from typing import Any

from fasthebb_cli.report.chains import Index, name_methods
from fasthebb_cli.report.directories import StageDirectory
from fasthebb_cli.report.estimates import Estimate, estimate
from fasthebb_cli.report.grid import Grid, Method, has_layers, place_of

LAYER = "finetune.layer"
RETRIEVAL = ", retrieval (mAP)"
# A probe's scores, and what they add to the method's name; the linear classifier's accuracy is the usual one
HEADS = {"top1": "", "hebbian": ", Hebbian classifier", "knn": ", k-NN", "svm": ", SVM", "retrieval": RETRIEVAL}
ByLayer = dict[str, Estimate]


def accuracies_by_layer(directories: Sequence[StageDirectory], index: Index, grid: Grid) -> dict[str, ByLayer]:
    """By method the top-1 over its seeds on each layer, [0, 1]; empty where no layer was measured by itself.

    Where several label fractions were measured, of the largest. Of several probes of a method and seed the latest.
    """
    measured = [item for item in directories if has_layers(item) and place_of(item) == (grid.dataset, grid.split)]
    most = max((item.results["label_fraction"] for item in measured), default=None)
    values: dict[str, dict[str, dict[int, float]]] = {}
    for item in sorted(measured, key=lambda item: str(item.results.get("finished", ""))):
        if item.results["label_fraction"] == most:
            name = _method_name(item, index, grid)
            for (head, layer), value in _heads(item.results).items():
                values.setdefault(name + HEADS[head], {}).setdefault(layer, {})[int(item.results["seed"])] = value
    probed = {name: {layer: estimate(list(by_seed.values())) for layer, by_seed in by_layer.items()}
              for name, by_layer in values.items()}  # fmt: skip
    return _swept(grid.methods) | probed


def _heads(results: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Accuracy by head and layer of a results.json that has `layers: {name: {top1: ...}}`."""
    return {
        (head, str(layer)): float(scores[head])
        for layer, scores in results["layers"].items() if isinstance(scores, dict)
        for head in HEADS if scores.get(head) is not None
    }  # fmt: skip


def _method_name(directory: StageDirectory, index: Index, grid: Grid) -> str:
    """The method that shares the stage whose features were measured; else the rule."""
    origins = {stage.path for stage in index.chain(directory)}
    for method in grid.methods:
        if any(stage.path in origins for run in method.all_runs() for stage in run.chain):
            return method.name
    return str(directory.results.get("rule"))


def _swept(methods: Sequence[Method]) -> dict[str, ByLayer]:
    """Methods that differ in the layer alone, at the largest fraction that they have."""
    groups: dict[str, list[Method]] = {}
    for method in methods:
        if method.settings.get(LAYER) is not None:
            rest = {key: value for key, value in method.settings.items() if key != LAYER}
            groups.setdefault(repr(sorted(rest.items())), []).append(method)
    swept = [group for group in groups.values() if len(group) > 1]
    names = name_methods([{k: v for k, v in group[0].settings.items() if k != LAYER} for group in swept])
    accuracies: dict[str, ByLayer] = {}
    for name, group in zip(names, swept, strict=True):
        for method in sorted(group, key=lambda method: str(method.settings[LAYER])):
            found = method.estimate(max(method.runs), "top1")
            if found is not None:
                accuracies.setdefault(name, {})[str(method.settings[LAYER])] = found
    return accuracies
