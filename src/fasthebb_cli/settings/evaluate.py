"""What a stage of the kind `evaluate` accepts."""

from dataclasses import dataclass

from fasthebb_cli.settings.checks import at_least, one_of


@dataclass
class EvaluateConfig:
    kind: str
    split: str
    batch_size: int

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("evaluate",))
        one_of("split", self.split, ("test", "validation"))
        at_least("batch_size", self.batch_size, 1)
