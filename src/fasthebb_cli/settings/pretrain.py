"""What a stage of the kind `pretrain` accepts, and what it says of itself."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fasthebb_cli.settings.checks import above, are_factors, at_least, one_of
from fasthebb_cli.settings.kind import FineTuning, Readout, not_measured

AUGMENTATIONS = ("none", "shift", "light", "hard")


@dataclass
class PretrainConfig:
    """Hebbian learning on all training images without their labels."""

    kind: str
    epochs: int
    batch_size: int
    lr: float | None
    schedule: str
    layer_lr: dict[str, float]
    include: list[str]
    exclude: list[str]
    augment: str
    layer_by_layer: bool
    teacher: bool
    teacher_units: dict[str, int]
    optimizer: str
    optimizer_options: dict[str, Any]

    SCHEDULES: ClassVar = ("constant", "linear")
    after: ClassVar[Sequence[str]] = ()
    measures: ClassVar = False
    scores: ClassVar = False
    pretrains: ClassVar = True
    shared: ClassVar = True
    needs: ClassVar = None
    readout: ClassVar = Readout()
    split: ClassVar = None
    splits: ClassVar = ("train", "unlabelled")
    learns_by_rule: ClassVar = True
    own_rule_keys: ClassVar[Sequence[str]] = ("lr", "optimizer", "layer_lr")
    numberless: ClassVar[Sequence[str]] = ()
    rules_without_settings: ClassVar[Sequence[str]] = ("random",)
    memory_keys: ClassVar[Sequence[str]] = ("batch_size",)
    recorded: ClassVar = True
    in_hooks: ClassVar = True
    by_rule: ClassVar[Sequence[str]] = ()

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("pretrain",))
        at_least("epochs", self.epochs, 0)
        at_least("batch_size", self.batch_size, 2)  # batch norm needs two
        if self.lr is not None:
            above("lr", self.lr, 0)
        one_of("schedule", self.schedule, self.SCHEDULES)
        are_factors("layer_lr", self.layer_lr)
        one_of("augment", self.augment, AUGMENTATIONS)

    @property
    def reads_labels(self) -> bool:
        return self.teacher

    @property
    def patterns(self) -> dict[str, Iterable[str]]:
        excluded = [pattern for pattern in self.exclude if pattern != "classifier*"]  # the default
        return {"include": self.include, "exclude": excluded, "teacher_units": self.teacher_units,
                "layer_lr": self.layer_lr}  # fmt: skip

    @classmethod
    def fine_tuning(cls, settings: Mapping[str, Any]) -> FineTuning | None:
        return None

    def no_objective(self, stage: str, metric: str) -> str | None:
        return not_measured(metric, ("loss",))
