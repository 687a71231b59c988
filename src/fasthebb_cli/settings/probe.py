"""What a stage of the kind `probe` accepts, and what it says of itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fasthebb_cli.settings.checks import above, at_least, in_range, one_of
from fasthebb_cli.settings.finetune import FinetuneConfig
from fasthebb_cli.settings.kind import FineTuning, Readout, not_measured


@dataclass
class ProbeConfig:
    """Classifiers on the frozen features of every layer."""

    kind: str
    split: str
    layers: list[str] | None
    methods: list[str]
    pool: int
    batch_size: int
    epochs: int
    lr: float
    schedule: str
    weight_decay: float
    dropout: float
    hidden: int
    neighbours: int
    components: int
    queries: int

    METHODS: ClassVar = ("linear", "hebbian", "knn", "svm", "retrieval")
    after: ClassVar[Sequence[str]] = ("pretrain",)
    measures: ClassVar = True
    scores: ClassVar = False
    pretrains: ClassVar = False
    shared: ClassVar = False
    needs: ClassVar = None
    augment: ClassVar = "none"
    readout: ClassVar = Readout()
    reads_labels: ClassVar = True
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
        one_of("kind", self.kind, ("probe",))
        one_of("split", self.split, ("test", "validation"))
        if self.layers == []:
            raise ValueError("layers is empty; name some, as in [conv*], or leave it out to probe all")
        if not self.methods:
            raise ValueError(f"methods is empty; use some of {', '.join(self.METHODS)}")
        for method in self.methods:
            one_of("methods", method, self.METHODS)
        one_of("schedule", self.schedule, FinetuneConfig.SCHEDULES)
        for name in ("pool", "hidden"):
            at_least(name, getattr(self, name), 0)
        for name in ("batch_size", "epochs", "neighbours", "components", "queries"):
            at_least(name, getattr(self, name), 1)
        above("lr", self.lr, 0)
        in_range("weight_decay", self.weight_decay, 0, float("inf"))
        in_range("dropout", self.dropout, 0, 0.999)

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", self.split)

    @classmethod
    def fine_tuning(cls, settings: Mapping[str, Any]) -> FineTuning | None:
        return None

    def no_objective(self, stage: str, metric: str) -> str | None:
        if self.split != "validation":
            return f"would choose on test images; use {stage}.split=validation"
        return not_measured(metric, ("layers",))
