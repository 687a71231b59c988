"""What a stage of the kind `pretrain` accepts."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from fasthebb_cli.settings.checks import above, are_factors, at_least, one_of

AUGMENTATIONS = ("none", "shift", "light", "hard")


@dataclass
class PretrainConfig:
    """Hebbian learning on all training images without their labels."""

    kind: str = "pretrain"
    epochs: int = MISSING
    batch_size: int = MISSING
    lr: float | None = None
    schedule: str = MISSING
    layer_lr: dict[str, float] = field(default_factory=dict)
    include: list[str] = field(default_factory=lambda: ["*"])
    exclude: list[str] = field(default_factory=list)
    augment: str = "none"
    layer_by_layer: bool = False
    teacher: bool = False
    teacher_units: dict[str, int] = field(default_factory=dict)
    optimizer: str = "SGD"
    optimizer_options: dict[str, Any] = field(default_factory=dict)

    SCHEDULES: ClassVar = ("constant", "linear")

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("pretrain",))
        at_least("epochs", self.epochs, 0)
        at_least("batch_size", self.batch_size, 2)  # batch norm needs two
        if self.lr is not None:
            above("lr", self.lr, 0)
        one_of("schedule", self.schedule, self.SCHEDULES)
        are_factors("layer_lr", self.layer_lr)
        one_of("augment", self.augment, AUGMENTATIONS)
