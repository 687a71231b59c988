"""The experiment as typed dataclasses: which keys there are and which values they accept. conf/ has all defaults.

`__post_init__` checks ranges. `options` accepts any key: its keys are arguments of the function that `name` names, and
are checked when that function is called.
"""

import os
import re
from dataclasses import dataclass
from typing import Any

from fasthebb_cli.settings.checks import above, at_least, in_range, is_colour, is_path, one_of
from fasthebb_cli.settings.kind import StageSettings
from fasthebb_cli.settings.stages import KINDS, STAGE_GROUPS, STAGES_OF_VERB

SUBSETS = ("stratified", "random")  # ways to choose the labelled images


@dataclass
class DatasetConfig:
    """Which images, and how they are split into training, validation and test."""

    name: str
    root: str | None
    size: int
    fit: str
    background: str
    train_samples: int | None
    validation_samples: int | None
    test_samples: int | None
    labels: str | None
    classes: str | None
    unlabelled: str | None
    download: bool
    mirror: bool
    in_memory: bool | None
    on_bad_image: str
    options: dict[str, Any]

    def __post_init__(self) -> None:
        at_least("size", self.size, 1, 4096)
        one_of("fit", self.fit, ("crop", "pad", "stretch"))
        is_colour("background", self.background)
        one_of("on_bad_image", self.on_bad_image, ("error", "skip"))
        for name in ("root", "labels", "classes", "unlabelled"):
            is_path(name, getattr(self, name))
        for name in ("train_samples", "validation_samples", "test_samples"):
            value = getattr(self, name)
            if value is not None:
                at_least(name, value, 1)


@dataclass
class RuleConfig:
    """How features are learnt without labels; name none: they are not learnt."""

    name: str
    response: str | None
    projection: bool | None
    activation: str
    whitening: float | None
    lr: float | None
    optimizer: str
    layer_lr: dict[str, float]
    options: dict[str, Any]
    layer_options: dict[str, dict[str, Any]]
    normalise: bool
    per_input: bool
    norm_power: float | None

    def __post_init__(self) -> None:
        if self.norm_power is not None:
            above("norm_power", self.norm_power, 0)
        if self.whitening is not None:
            above("whitening", self.whitening, 0)


@dataclass
class ModelConfig:
    """The network."""

    name: str
    width: float | None
    norm: str | None
    dropout: float | None
    activation: str | None
    options: dict[str, Any]

    def __post_init__(self) -> None:
        if self.width is not None:
            above("width", self.width, 0)
            in_range("width", self.width, 0, 100)
        if self.norm is not None:
            one_of("norm", self.norm, ("relative", "batch"))
        if self.dropout is not None:
            in_range("dropout", self.dropout, 0, 0.999)
        if self.activation is not None:
            one_of("activation", self.activation, ("relu", "tanh"))

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the network's function, those that are null left out."""
        usual = {"width": self.width, "norm": self.norm, "dropout": self.dropout, "activation": self.activation}
        return {key: value for key, value in usual.items() if value is not None} | self.options


@dataclass
class GpuConfig:
    """Where and how numbers are computed. Only `precision` enters the fingerprint."""

    device: str
    precision: str
    channels_last: bool
    graph: bool | None
    compile: bool
    deterministic: bool
    threads: int | None
    workers: int
    micro_batch: int | None

    def __post_init__(self) -> None:
        one_of("precision", self.precision, ("fp32", "tf32", "bf16"))
        at_least("workers", self.workers, 0, 4096)
        if self.threads is not None:
            at_least("threads", self.threads, 1, 4096)
        if self.graph and self.compile:
            raise ValueError("graph and compile exclude each other; leave one out")
        if self.micro_batch is not None:
            at_least("micro_batch", self.micro_batch, 1)
            if self.compile:
                raise ValueError("micro_batch runs layer by layer, so compile has no effect; leave one out")


@dataclass
class Config:
    """One cell: everything that `fasthebb VERB key=value ...` says.

    Args:
        settings: of every stage by its name: that of a kind, or one below `extra`.
        stages: names of the stages that are asked for, in order.
    """

    dataset: DatasetConfig
    rule: RuleConfig
    model: ModelConfig
    gpu: GpuConfig
    settings: dict[str, StageSettings]
    verb: str
    stages: list[str]
    label_fraction: float
    labels_per_class: int | None
    label_subset: str
    leave_out: str | None
    seed: int
    out: str
    force: bool
    dry_run: bool
    objective: str | None
    init_from: str | None

    @property
    def labelled(self) -> str | None:
        """The file that lists the images whose labels may be read; None: they are chosen."""
        return self.label_subset if is_list(self.label_subset) else None


@dataclass
class TopLevel:
    """The plain keys of config.yaml."""

    verb: str
    label_fraction: float
    labels_per_class: int | None
    label_subset: str
    leave_out: str | None
    seed: int
    stages: list[str] | None
    out: str
    force: bool
    dry_run: bool
    objective: str | None
    init_from: str | None

    def __post_init__(self) -> None:
        one_of("verb", self.verb, tuple(STAGES_OF_VERB))
        if not 0 < self.label_fraction <= 1:
            raise ValueError(f"label_fraction must be in (0, 1], not {self.label_fraction}")
        is_path("out", self.out)
        if self.out.encode(errors="replace").decode() != self.out:
            raise ValueError("out has bytes that are no UTF-8, and TensorBoard writes to no such path; give another")
        is_path("init_from", self.init_from)
        if self.labels_per_class is not None:
            at_least("labels_per_class", self.labels_per_class, 1)
            if self.label_fraction != 1:
                raise ValueError("labels_per_class and label_fraction both say how many labels; leave one of them out")
            if self.label_subset == "random":
                raise ValueError("labels_per_class takes so many of every class; leave label_subset=random out")
        if is_list(self.label_subset):
            is_path("label_subset", self.label_subset)
            if not os.path.isfile(os.path.expanduser(self.label_subset)):
                choices = ", ".join(SUBSETS)
                raise ValueError(f"label_subset must be one of {choices}, or a file, not {self.label_subset!r}")
            if self.label_fraction != 1 or self.labels_per_class is not None:
                raise ValueError("label_subset is a list, all of which is taken; leave the number of labels out")
        if self.leave_out is not None:
            fold_of(self.leave_out)
        in_range("seed", self.seed, 0, 2**63 - 1)


def is_list(label_subset: str) -> bool:
    """Whether it is a file that lists images, not a way to choose them."""
    return label_subset not in SUBSETS


def fold_of(text: str) -> tuple[int, int]:
    """`leave_out` as (fold, number of folds), the fold counted from 0.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch("([0-9]{1,4})/([0-9]{1,4})", text)
    fold, folds = (int(part) for part in found.groups()) if found else (0, 0)
    if not 1 <= fold <= folds or folds < 2:
        raise ValueError(f"leave_out must be a fold and the number of folds, 2 to 9999, as in 1/5, not {text!r}")
    return fold - 1, folds


SHARED: dict[str, type] = {"dataset": DatasetConfig, "rule": RuleConfig, "model": ModelConfig, "gpu": GpuConfig}
# folder of conf/ -> what its files accept; those of `finetune` may be of another kind, see STAGE_GROUPS
GROUPS: dict[str, type] = SHARED | {group: KINDS[group] for group in STAGE_GROUPS}
