"""Plans a cell: its stages in order, each with its directory. Nothing is computed or written.

The name of a stage's directory ends in a fingerprint of all that changes the stage's numbers: images and split,
network, rule, settings, seed, precision, the source of the user's own code, and the fingerprint of the stage before.
Device, threads, workers and paths change no number, so the fingerprint leaves them out. Cells that share a stage share
its directory. A stage with other settings has another directory.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fasthebb.patterns import order_counts
from fasthebb.stage_files import digest_of_file
from fasthebb_cli.data.collection import fit_of
from fasthebb_cli.data.dataset import Dataset, statistics_of
from fasthebb_cli.errors import InputError
from fasthebb_cli.run.directory import MODEL_FILE, RESULTS_FILE
from fasthebb_cli.run.own_source import own_sources, token
from fasthebb_cli.settings.config import Config
from fasthebb_cli.settings.fingerprint import NUMBERS_VERSION, fingerprint_of
from fasthebb_cli.settings.kind import Readout, StageSettings

COVERED_RULE_KEYS = ("name", "whitening", "activation")  # in the content of every stage; activation is the network's
BY_PATTERN = ("layer_lr", "layer_options", "teacher_units")  # mappings whose order matters: the last match counts


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a cell.

    Args:
        name: in `stages`, or the kind of a stage that another one needs; kind: of stage.
        content: flat key -> value of all that the fingerprint covers.
        configured: name of the stage whose settings a user sets: its own, or that of the stage that needs it.
        wanted: `stages` names it. A stage that is not wanted must be finished already, since a wanted one needs it.
        previous: the stage that its weights come from; None: they come from `init_from` or from the seed.
    """

    name: str
    kind: str
    configured: str
    settings: StageSettings
    directory: Path
    fingerprint: str
    content: dict[str, Any]
    wanted: bool
    previous: "PlannedStage | None"

    @property
    def readout(self) -> Readout:
        """The classifier that this stage and those before it ask for. Weights of `init_from` may have another one."""
        own, before = self.settings.readout, self.previous.readout if self.previous else Readout()
        return Readout(own.layer or before.layer, own.hidden or before.hidden, own.closed or before.closed)

    @property
    def finished(self) -> bool:
        return (self.directory / RESULTS_FILE).exists()


def plan(config: Config, dataset: Dataset) -> list[PlannedStage]:
    """The cell's stages in order.

    Raises:
        InputError: there is no stage to run, or `init_from` can't be read.
    """
    stages: list[PlannedStage] = []
    origin = _weights_digest(Path(config.init_from)) if config.init_from else None
    previous: PlannedStage | None = None
    for name, configured, settings, wanted in _with_needed(config, _names(config)):
        content = {"stage": name} | _content(config, dataset, settings, previous.fingerprint if previous else origin)
        fingerprint = fingerprint_of(content)
        directory = Path(config.out) / f"{_readable(config, name, settings)}-{fingerprint[:8]}"
        stage = PlannedStage(
            name, settings.kind, configured, settings, directory, fingerprint, content, wanted, previous
        )
        stages.append(stage)
        if not settings.measures:
            previous = stage
    return stages


def _names(config: Config) -> list[tuple[str, bool]]:
    """(name, wanted) of each stage: those that the cell names, and before them those that the first one needs."""
    names = [(name, True) for name in config.stages]
    if config.init_from is None:
        needed = config.settings[config.stages[0]].after
        names = [(name, False) for name in needed] + names
    if config.rule.name == "none":  # nothing to pre-train: the network starts from scratch
        names = [(name, wanted) for name, wanted in names if not config.settings[name].pretrains]
        if not any(wanted for _, wanted in names):
            raise InputError("rule=none learns nothing without labels, so there is nothing to pre-train; choose a rule")
    return names


def _with_needed(config: Config, names: Iterable[tuple[str, bool]]) -> Iterator[tuple[str, str, StageSettings, bool]]:
    """(name, configured, settings, wanted) of each stage, and before it of the one it needs, called by its kind."""
    for name, wanted in names:
        settings = config.settings[name]
        if settings.needs is not None:
            yield settings.needs.kind, name, settings.needs, wanted
        yield name, name, settings, wanted


def _content(config: Config, dataset: Dataset, settings: StageSettings, previous: str | None) -> dict[str, Any]:
    """Flat key -> value of all that changes the stage's numbers.

    Args:
        previous: fingerprint of the weights before; None: the seed makes the weights.
    """
    content: dict[str, Any] = {
        "version": NUMBERS_VERSION,
        "kind": settings.kind,
        "seed": config.seed,
        "gpu.precision": config.gpu.precision,
        "dataset.name": dataset.name,
        "dataset.images": dataset.digest,
        "dataset.size": dataset.source.size,
        "model.name": config.model.name,
        "rule.name": config.rule.name,
        "rule.whitening": config.rule.whitening,
        "previous": previous,
    }
    if not (fit := fit_of(config.dataset)).is_usual:
        content["dataset.fit"] = f"{fit.how}, background {fit.background}"
    content |= {key.replace("name", "source"): digest or token() for key, digest in own_sources(config).items()}
    content |= _flat("model", config.model.arguments())
    if config.rule.name not in settings.rules_without_settings:
        content |= _content_of_settings(config, dataset, settings)
    for split in settings.splits:
        content |= _samples(split, getattr(dataset, split))
    if previous is None:  # else the statistics for normalising come with the weights
        content |= _samples("train", dataset.train) | {"dataset.statistics": statistics_of(dataset)}
    return content


def _content_of_settings(config: Config, dataset: Dataset, settings: StageSettings) -> dict[str, Any]:
    """Flat key -> value of the stage's settings, and of those of the rule and the labels that the stage reads."""
    own = {key: value for key, value in asdict(settings).items() if key not in settings.numberless}
    content = _flat(settings.kind, own)
    if settings.augment != "none":
        content["dataset.mirror"] = config.dataset.mirror
    if settings.learns_by_rule:
        covered = (*COVERED_RULE_KEYS, *settings.own_rule_keys)
        content |= _flat("rule", {key: value for key, value in asdict(config.rule).items() if key not in covered})
    if settings.reads_labels or settings.split == "left_out":
        content |= _content_of_budget(config, dataset)
        if config.leave_out is not None:
            content["leave_out"] = config.leave_out
    return content


def _content_of_budget(config: Config, dataset: Dataset) -> dict[str, Any]:
    if dataset.listed is not None:
        return _samples("labelled", dataset.listed)
    if config.labels_per_class is not None:
        return {"labels_per_class": config.labels_per_class, "label_subset": config.label_subset}
    return {"label_fraction": config.label_fraction, "label_subset": config.label_subset}


def _flat(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, with keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key in BY_PATTERN and order_counts(value):
            flat[f"{prefix}.{key}.order"] = list(value)
        flat |= _flat(f"{prefix}.{key}", value) if isinstance(value, dict) else {f"{prefix}.{key}": value}
    return flat


def _samples(name: str, indices: Tensor) -> dict[str, Any]:
    """How many images a split has, and a digest of their indices (N,)."""
    digest = blake2b(indices.to(torch.int64).numpy().tobytes(), digest_size=8).hexdigest()
    return {f"dataset.{name}": f"{len(indices)} images {digest}"}


def _readable(config: Config, name: str, settings: StageSettings) -> str:
    """The part of a directory's name before the fingerprint, for people to read."""
    width = f"w{config.model.width:g}" if config.model.width not in (None, 1) else ""
    fraction = "" if settings.shared else _budget(config)
    parts = [config.dataset.name, config.model.name, width, config.rule.name, fraction, f"seed{config.seed}", name]
    return "-".join(re.sub(r"[^\w.]+", "_", part.split(":")[-1]) for part in parts if part)


def _budget(config: Config) -> str:
    if config.labelled is not None:
        return "listed"
    return f"{config.label_fraction:g}" if config.labels_per_class is None else f"{config.labels_per_class}each"


def _weights_digest(path: Path) -> str:
    """The digest of the weights that `init_from` names, in place of the fingerprint of a stage before."""
    path = path / MODEL_FILE if path.is_dir() else path
    try:
        return digest_of_file(path)
    except OSError as error:
        wanted = f"give a {MODEL_FILE} or the stage's directory"
        raise InputError(f"init_from: can't read {path} ({error.strerror}); {wanted}") from error
