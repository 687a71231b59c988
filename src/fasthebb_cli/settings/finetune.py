"""What a stage of the kind `finetune` accepts, and what it says of itself."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fasthebb_cli.settings.checks import LARGEST_FACTOR, above, are_factors, at_least, in_range, one_of
from fasthebb_cli.settings.kind import FineTuning, Readout, not_measured
from fasthebb_cli.settings.pretrain import AUGMENTATIONS


@dataclass
class FinetuneConfig:
    """Supervised training on the labelled subset, of the classifier alone or of all layers."""

    kind: str
    epochs: int | None
    batch_size: int
    lr: float
    schedule: str
    weight_decay: float
    momentum: float
    features_lr: float
    layer_lr: dict[str, float]
    classifier_epochs: int
    layer: str | None
    hidden: int
    classifier: str
    by_rule: list[str]
    optimizer: str
    balance: bool
    select: str
    patience: int | None
    augment: str

    SCHEDULES: ClassVar = ("constant", "linear", "cosine", "one_cycle", "halving", "softhebb")
    after: ClassVar[Sequence[str]] = ("pretrain",)
    measures: ClassVar = False
    scores: ClassVar = False
    pretrains: ClassVar = False
    shared: ClassVar = False
    needs: ClassVar = None
    reads_labels: ClassVar = True
    split: ClassVar = None
    own_rule_keys: ClassVar[Sequence[str]] = ()
    numberless: ClassVar[Sequence[str]] = ()
    rules_without_settings: ClassVar[Sequence[str]] = ()
    memory_keys: ClassVar[Sequence[str]] = ("batch_size",)
    recorded: ClassVar = True

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("finetune",))
        if self.epochs is not None:
            at_least("epochs", self.epochs, 1)
        at_least("batch_size", self.batch_size, 2)
        above("lr", self.lr, 0)
        one_of("schedule", self.schedule, self.SCHEDULES)
        in_range("weight_decay", self.weight_decay, 0, float("inf"))
        in_range("momentum", self.momentum, 0, 0.9999)
        in_range("features_lr", self.features_lr, 0, LARGEST_FACTOR)
        are_factors("layer_lr", self.layer_lr)
        at_least("classifier_epochs", self.classifier_epochs, 0)
        at_least("hidden", self.hidden, 0)
        one_of("classifier", self.classifier, ("backprop", "hebbian"))
        one_of("optimizer", self.optimizer, ("SGD", "Adam", "AdamW"))
        one_of("select", self.select, ("last", "best"))
        if self.patience is not None:
            at_least("patience", self.patience, 1)
        one_of("augment", self.augment, AUGMENTATIONS)
        self._go_together()

    @property
    def readout(self) -> Readout:
        return Readout(self.layer, self.hidden)

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation") if self.select == "best" else ("train",)

    @property
    def learns_by_rule(self) -> bool:
        return bool(self.by_rule)

    @property
    def patterns(self) -> dict[str, Iterable[str]]:
        return {"layer_lr": self.layer_lr}

    @classmethod
    def fine_tuning(cls, settings: Mapping[str, Any]) -> FineTuning | None:
        if settings.get("classifier") == "hebbian":
            return FineTuning("Hebbian classifier", backprop=False)
        return FineTuning("frozen features" if settings.get("features_lr") == 0 else "backprop", backprop=True)

    def no_objective(self, stage: str, metric: str) -> str | None:
        if unknown := not_measured(metric, ("top1", "loss")):
            return unknown
        if metric != "top1" or self.select == "best":
            return None
        return f"has a value with {stage}.select=best only; or objective=evaluate.top1 evaluate.split=validation"

    @property
    def in_hooks(self) -> bool:
        return bool(self.by_rule) or self.classifier == "hebbian"

    def _go_together(self) -> None:
        if self.classifier == "hebbian" and self.features_lr != 0:
            raise ValueError("classifier=hebbian gives the features no gradient; set features_lr=0 too")
        if self.classifier == "hebbian" and (self.hidden or self.classifier_epochs):
            raise ValueError("classifier=hebbian has one layer and one phase; leave out hidden and classifier_epochs")
        if self.classifier == "hebbian" and self.balance:
            raise ValueError("classifier=hebbian learns each class by itself; leave balance out")
        if self.by_rule and self.features_lr == 0:
            raise ValueError("by_rule trains layers, but features_lr=0 freezes all of them; leave one out")
        if self.patience is not None and self.select != "best":
            raise ValueError("patience needs the validation accuracy of each epoch; set select=best too")
