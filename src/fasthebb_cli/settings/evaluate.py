"""What a stage of the kind `evaluate` accepts, and what it says of itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fasthebb_cli.settings.checks import at_least, one_of
from fasthebb_cli.settings.kind import FineTuning, Readout, not_measured


@dataclass
class EvaluateConfig:
    """Accuracy and loss on images that no stage before has seen."""

    kind: str
    split: str
    batch_size: int

    after: ClassVar[Sequence[str]] = ("pretrain", "finetune")
    measures: ClassVar = True
    scores: ClassVar = True
    pretrains: ClassVar = False
    shared: ClassVar = False
    needs: ClassVar = None
    augment: ClassVar = "none"
    readout: ClassVar = Readout()
    reads_labels: ClassVar = False
    learns_by_rule: ClassVar = False
    own_rule_keys: ClassVar[Sequence[str]] = ()
    numberless: ClassVar[Sequence[str]] = ("batch_size",)
    rules_without_settings: ClassVar[Sequence[str]] = ()
    memory_keys: ClassVar[Sequence[str]] = ("batch_size",)
    recorded: ClassVar = False
    in_hooks: ClassVar = False
    by_rule: ClassVar[Sequence[str]] = ()
    layer_lr: ClassVar[dict[str, float]] = {}
    patterns: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("evaluate",))
        one_of("split", self.split, ("test", "validation", "left_out"))
        at_least("batch_size", self.batch_size, 1)

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train",) if self.split == "left_out" else (self.split,)

    @classmethod
    def fine_tuning(cls, settings: Mapping[str, Any]) -> FineTuning | None:
        return None

    def no_objective(self, stage: str, metric: str) -> str | None:
        if self.split == "test":
            return f"would choose on test images; use {stage}.split=validation"
        return not_measured(metric, ("top1", "top5", "balanced_top1", "loss", "calibration_error"))
