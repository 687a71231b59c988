"""The settings of `fasthebb bench` and `fasthebb data` as typed dataclasses; see config.py."""

from dataclasses import dataclass
from typing import ClassVar

from fasthebb_cli.settings.checks import at_least, in_range, is_path, one_of
from fasthebb_cli.settings.config import DatasetConfig, GpuConfig, ModelConfig, RuleConfig

BENCHES = ("step", "layer", "scale", "traffic", "data", "run", "readout")
LARGE = {"conv10": (210, 32)}  # network -> (size, batch); any other: (32, 64)


@dataclass
class BenchConfig:
    """What `fasthebb bench` measures."""

    rule: RuleConfig
    model: ModelConfig
    gpu: GpuConfig
    dataset: DatasetConfig
    what: str
    size: int | None
    batch_size: int | None
    classes: int
    repeats: int
    naive: bool
    plan: str | None
    rows: int | None
    json: str | None

    def __post_init__(self) -> None:
        one_of("what", self.what, BENCHES)
        for name, value in (("size", self.images), ("batch_size", self.batch), ("classes", self.classes)):
            at_least(name, value, 2)
        at_least("repeats", self.repeats, 1)
        at_least("rows", 1 if self.rows is None else self.rows, 1)
        is_path("json", self.json)
        is_path("plan", self.plan)
        if self.what == "data" and self.size is not None:
            raise ValueError("size: bench data has the images of a data set; set dataset.size")

    @property
    def images(self) -> int:
        """Height and width of the images, in pixels."""
        return self.size if self.size is not None else LARGE.get(self.model.name, (32, 64))[0]

    @property
    def batch(self) -> int:
        """Images in a batch; null: the network's usual number."""
        return self.batch_size if self.batch_size is not None else LARGE.get(self.model.name, (32, 64))[1]


@dataclass
class DataConfig:
    """What `fasthebb data` does."""

    dataset: DatasetConfig
    what: str
    out: str | None
    format: str
    archive: str | None
    workers: int
    seed: int

    ACTIONS: ClassVar = ("prepare", "info")
    FORMATS: ClassVar = ("uint8", "encoded")

    def __post_init__(self) -> None:
        one_of("what", self.what, self.ACTIONS)
        one_of("format", self.format, self.FORMATS)
        for name in ("out", "archive"):
            is_path(name, getattr(self, name))
        if self.archive is not None and self.what == "info":
            raise ValueError("archive is for fasthebb data prepare, which unpacks it; leave it out")
        at_least("workers", self.workers, 0, 4096)
        in_range("seed", self.seed, 0, 2**63 - 1)
