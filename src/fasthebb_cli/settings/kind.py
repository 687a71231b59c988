"""What every kind of stage says of itself, so that no code outside of its own stage asks which kind it is."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field
from typing import Any, ClassVar, NamedTuple, Protocol


class ClosedReadout(NamedTuple):
    """What a classifier in closed form reads; see `fasthebb.readout.features`.

    Args:
        layers: patterns of layer names; None: the first two children of the network that give maps.
        mirror: the scores of an image and its mirror image are averaged.
    """

    layers: tuple[str, ...] | None
    pool: int
    root: bool
    mirror: bool


class Readout(NamedTuple):
    """Where the classifier reads, and how large it is.

    Args:
        layer: the network is cut after it; None: it is as long as the weights that the stage starts from.
        hidden: units of the classifier's hidden layer; 0: as many as the weights that the stage starts from have.
        closed: the classifier is in closed form; None: it is a layer of the network.
    """

    layer: str | None = None
    hidden: int = 0
    closed: ClosedReadout | None = None


class FineTuning(NamedTuple):
    """How a stage makes a classifier from labels.

    Args:
        name: as methods are called by it.
        backprop: by backward passes.
    """

    name: str
    backprop: bool


def not_measured(metric: str, names: Sequence[str]) -> str | None:
    """For `no_objective`: that results have no such metric, but those of these names; None: they have."""
    names = (*names, "seconds", "images_per_second")
    return None if metric.partition(".")[0] in names else f"is no metric; there are: {', '.join(names)}"


class StageSettings(Protocol):
    """The settings of one stage. `settings/stages.py` lists the dataclasses that are such settings.

    Args, the same for all stages of a kind:
        after: kinds that come before this one. A cell that does not name them takes their finished weights.
        measures: the stage leaves the weights as they are.
        scores: it measures the network's own classifier.
        pretrains: the rule alone teaches the network. Without a rule there is nothing to do.
        shared: cells with other labels share the stage, so one of them waits while another runs it.
        own_rule_keys: settings of the rule that the stage does not read, since it has its own of the same name.
        numberless: settings of the stage that change no number, so the fingerprint does not cover them.
        rules_without_settings: values of `rule.name` with which the stage reads neither its settings nor the rule's.
        memory_keys: settings of the stage which, when lowered, lower the memory that it needs.
        recorded: steps can be recorded as CUDA graphs.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    after: ClassVar[Sequence[str]]
    measures: ClassVar[bool]
    scores: ClassVar[bool]
    pretrains: ClassVar[bool]
    shared: ClassVar[bool]
    own_rule_keys: ClassVar[Sequence[str]]
    numberless: ClassVar[Sequence[str]]
    rules_without_settings: ClassVar[Sequence[str]]
    memory_keys: ClassVar[Sequence[str]]
    recorded: ClassVar[bool]

    @property
    def kind(self) -> str:
        """The kind's name, as in the group of `conf/`."""

    @property
    def batch_size(self) -> int:
        """Images in a step."""

    @property
    def needs(self) -> "StageSettings | None":
        """A stage that comes right before this one, with settings that follow from this one's; None: there is none."""

    @property
    def augment(self) -> str:
        """How the images of a step are augmented; none: they are not."""

    @property
    def readout(self) -> Readout:
        """The classifier that the stage asks for."""

    @property
    def reads_labels(self) -> bool:
        """The stage learns from the labels of the labelled training images."""

    @property
    def split(self) -> str | None:
        """The split that the stage measures on, `test` or `validation`; None: it measures on none."""

    @property
    def splits(self) -> Sequence[str]:
        """All splits whose images the stage reads: fields of a Dataset."""

    @property
    def learns_by_rule(self) -> bool:
        """The rule changes weights, so its settings enter the fingerprint."""

    @property
    def in_hooks(self) -> bool:
        """Forward hooks do some of the learning; then it is not the whole network that is compiled."""

    @property
    def by_rule(self) -> Sequence[str]:
        """Patterns of the layers that learn by the rule while backprop trains the others."""

    @property
    def layer_lr(self) -> Mapping[str, float]:
        """Pattern of layer names -> factor on the rate."""

    @property
    def patterns(self) -> Mapping[str, Iterable[str]]:
        """Setting -> patterns that a user gave, each of which must match a layer of the network."""

    @classmethod
    def fine_tuning(cls, settings: Mapping[str, Any]) -> FineTuning | None:
        """How a stage with these settings makes a classifier from labels; None: it makes none that is kept."""

    def no_objective(self, stage: str, metric: str) -> str | None:
        """Why a search can't look at this metric of the stage of this name; None: it can."""
