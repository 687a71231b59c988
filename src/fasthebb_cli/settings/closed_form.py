"""What the stages `components` and `closed_form` accept, and what they say of themselves.

`closed_form` is a way to fine-tune, and `components` is its first half, which reads no label. The user sets both by the
keys of `finetune`; cells of a sweep over labels share the first half.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from fasthebb_cli.settings.checks import above, at_least, in_range, one_of
from fasthebb_cli.settings.kind import ClosedReadout, FineTuning, Readout, StageSettings


@dataclass
class ComponentsConfig:
    """What is kept of the features, from sums over all training images without their labels."""

    kind: str
    layers: list[str] | None
    pool: int
    root: bool
    floor: float
    components: int
    mirror: bool
    view: str | None
    views: int
    shrinkage: float
    batch_size: int

    after: ClassVar[Sequence[str]] = ("pretrain",)
    measures: ClassVar = False
    scores: ClassVar = False
    pretrains: ClassVar = False
    shared: ClassVar = True
    augment: ClassVar = "none"
    reads_labels: ClassVar = False
    split: ClassVar = None
    splits: ClassVar[Sequence[str]] = ("train", "unlabelled")
    learns_by_rule: ClassVar = False
    own_rule_keys: ClassVar[Sequence[str]] = ()
    numberless: ClassVar[Sequence[str]] = ("batch_size",)
    rules_without_settings: ClassVar[Sequence[str]] = ()
    memory_keys: ClassVar[Sequence[str]] = ("batch_size", "pool")
    recorded: ClassVar = False
    in_hooks: ClassVar = False
    by_rule: ClassVar[Sequence[str]] = ()
    layer_lr: ClassVar[dict[str, float]] = {}
    patterns: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("components",))
        self.check()

    def check(self) -> None:
        if self.layers == []:
            raise ValueError("layers is empty; name some, as in [conv1,conv2], or leave it out")
        for name in ("pool", "components", "batch_size"):
            at_least(name, getattr(self, name), 1)
        in_range("floor", self.floor, 0, 1)
        if self.view is not None:
            one_of("view", self.view, ("photograph", "digit"))
        in_range("views", self.views, 0, 100)
        above("shrinkage", self.shrinkage, 0)

    @property
    def needs(self) -> StageSettings | None:
        return None

    @property
    def readout(self) -> Readout:
        layers = None if self.layers is None else tuple(self.layers)
        return Readout(closed=ClosedReadout(layers, self.pool, self.root, self.mirror))

    @property
    def view_kind(self) -> str:
        return self.view or ("photograph" if self.mirror else "digit")

    @classmethod
    def fine_tuning(cls, settings: Mapping[str, Any]) -> FineTuning | None:
        return None

    def no_objective(self, stage: str, metric: str) -> str | None:
        return "has no value on validation images; use objective=evaluate.top1 evaluate.split=validation"


@dataclass
class ClosedFormConfig(ComponentsConfig):
    """A classifier on components of frozen features, from sums over images and one factorisation."""

    classifier: str
    sharpness: float | None
    ridge: float | None
    balance: bool
    kernel_rows: int
    landmarks: int

    shared: ClassVar = False
    reads_labels: ClassVar = True
    memory_keys: ClassVar[Sequence[str]] = ("batch_size", "components", "kernel_rows", "landmarks", "pool")

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("closed_form",))
        self.check()
        at_least("kernel_rows", self.kernel_rows, 100)
        at_least("landmarks", self.landmarks, 10)
        one_of("classifier", self.classifier, ("auto", "kernel", "propagation", "ridge"))
        for name in ("sharpness", "ridge"):
            if getattr(self, name) is not None:
                above(name, getattr(self, name), 0)

    @property
    def needs(self) -> StageSettings | None:
        own = {field.name: getattr(self, field.name) for field in fields(ComponentsConfig)}
        return ComponentsConfig(**own | {"kind": "components"})

    @classmethod
    def fine_tuning(cls, settings: Mapping[str, Any]) -> FineTuning | None:
        return FineTuning("closed form", backprop=False)
