"""What led to an accuracy: the chain of its stages, their settings in one mapping, and the name of the method.

A *method* is everything that differs between runs except seed and label fraction. Its name is its rule and its way of
fine-tuning, then the fewest keys that tell it from the other methods of that rule.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fasthebb_cli.report.directories import StageDirectory
from fasthebb_cli.settings.stages import NEEDED_KINDS

Settings = dict[str, Any]
WAY = "fine-tuning"  # the key of its name; the settings of the stage are further keys
BALANCED = "balanced_top1"  # the mean over classes
METRICS = {"top1": "top-1", BALANCED: "balanced top-1", "top5": "top-5"}
SCRATCH = "none"  # the rule without pre-training: methods with pre-training are compared with it
RANDOM = "random"  # the rule that teaches nothing: the control that shows what the learning of filters adds
NOT_HEBBIAN = (SCRATCH, RANDOM, "vae")  # the last one learns without labels too, but by backprop
# Keys that are no part of a method: the cell, the split that was measured, and the place of the stage in its chain
NOT_METHOD = ("seed", "label_fraction", "labels_per_class", "stage", "kind", "previous", "evaluate.split",
              "dataset.labelled", "dataset.fit", "dataset.test", "dataset.validation", "dataset.images",
              "dataset.name")  # fmt: skip

# Of keys that tell equally many methods apart, TELLING ones go into a name first, and UNTELLING ones last
TELLING = ("after", "dataset.size", "model.name", "model.width", "rule.whitening", "finetune.layer")
UNTELLING = ("version", "dataset.statistics", "dataset.mirror")


class Index:
    """Finished directories by their fingerprint, to walk from a stage to the stages before it."""

    def __init__(self, directories: Iterable[StageDirectory]) -> None:
        self._finished = [item for item in directories if item.state == "finished"]
        self._by_fingerprint = {str(item.fingerprint): item for item in self._finished}
        self._by_model: dict[str, StageDirectory] | None = None

    def chain(self, directory: StageDirectory) -> list[StageDirectory]:
        """The stages that led to this one, in order, and this one last. Stages that are not there are left out."""
        stages = [directory]
        while (previous := stages[0].previous) is not None:
            before = self._by_fingerprint.get(previous) or self._models().get(previous)
            if before is None or before in stages:
                break
            stages.insert(0, before)
        return stages

    def _models(self) -> dict[str, StageDirectory]:
        """Directories by the digest of their weights: with `init_from`, `previous` is such a digest."""
        if self._by_model is None:
            self._by_model = {
                str(item.results["weights"]): item for item in self._finished if item.results.get("weights")
            }
        return self._by_model


def settings_of(chain: Sequence[StageDirectory]) -> Settings:
    """All settings of a chain of stages as flat keys; a later stage's value of a key counts.

    An earlier stage's other value is kept under `stage: key`. Of "3000 images 7b31d929dc21d607" only the count is
    kept, since the digest differs with the seed.
    """
    settings: Settings = {}
    for directory in reversed(chain):
        stage, kind = directory.stage, directory.kind
        if kind in NEEDED_KINDS and directory is not chain[-1]:  # the stage that needs it has its settings
            continue
        for key, value in directory.content.items():
            if key in ("stage", "kind", "previous") or key == f"{kind}.kind":
                continue
            name = f"{stage}.{key.removeprefix(f'{kind}.')}" if key.startswith(f"{kind}.") else key
            plain = re.sub(r"^(\d+ images) [0-9a-f]+$", r"\1", value) if isinstance(value, str) else value
            if settings.setdefault(name, plain) != plain:
                settings[f"{stage}: {name}"] = plain
    if len(chain) > 1 and chain[-1].kind == "probe":  # which stage's features it measured
        settings["after"] = chain[-2].stage
    if ways := [way.name for directory in chain if (way := directory.fine_tuning)]:
        settings[WAY] = ways[-1]
    if chain[0].previous is not None:
        settings["init_from"] = str(chain[0].previous)[:8]
    return settings


def method_of(settings: Mapping[str, Any]) -> Settings:
    """The settings that belong to the method."""
    return {key: value for key, value in settings.items() if key not in NOT_METHOD}


def name_methods(methods: Sequence[Settings]) -> list[str]:
    """A short name for each: its rule, its way of fine-tuning if there are several, and the keys that tell the rest
    apart: hpca, closed form (closed_form.pool=4).
    """
    names, are_ways_told = [], len({method[WAY] for method in methods if WAY in method}) > 1
    told = ("rule.name", WAY) if are_ways_told else ("rule.name",)
    for method in methods:
        name = str(method.get("rule.name", "?")).split(":")[-1]
        if are_ways_told and method.get(WAY):
            name += f", {method[WAY]}"
        rivals = [other for other in methods if all(other.get(key) == method.get(key) for key in told)]
        shown = [f"{key}={_plain(method[key])}" for key in distinguishing(rivals) if method.get(key) is not None]
        names.append(f"{name} ({', '.join(shown)})" if shown else name)
    return [name if names.count(name) == 1 else f"{name} #{number + 1}" for number, name in enumerate(names)]


def distinguishing(methods: Sequence[Settings]) -> list[str]:
    """Few keys that tell all the methods apart. The key that separates most methods comes first."""
    keys = [key for key in dict.fromkeys(key for method in methods for key in method)
            if key != WAY and len({repr(method.get(key)) for method in methods}) > 1]  # fmt: skip
    keys.sort(key=lambda key: (key not in TELLING, key in UNTELLING, ":" in key))
    chosen: list[str] = []
    groups = [list(methods)]
    while keys and any(len(group) > 1 for group in groups):
        best = max(keys, key=lambda key: len(_split(groups, key)))
        if len(_split(groups, best)) == len(groups):
            break
        groups = _split(groups, best)
        chosen.append(best)
        keys.remove(best)
    return chosen


def setting_text(settings: Mapping[str, Any], key: str) -> str:
    """A value as the command line takes it; "–" for a key that the settings don't have."""
    if key not in settings:
        return "–"
    value = settings[key]
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")


def _split(groups: Sequence[list[Settings]], key: str) -> list[list[Settings]]:
    """Each group split into those with the same value of the key."""
    parts: list[list[Settings]] = []
    for group in groups:
        values: dict[str, list[Settings]] = {}
        for method in group:
            values.setdefault(repr(method.get(key)), []).append(method)
        parts += values.values()
    return parts


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
