"""What the stages of a cell took together: backward passes and seconds."""

from collections.abc import Mapping, Sequence
from typing import Any


def seconds_of(stages: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of all stages. A stage that is reused counts in full, so that cells that share it can be compared."""
    return float(sum(stage["seconds"] for stage in stages))


def backward_passes_of(stages: Sequence[Mapping[str, Any]]) -> int | None:
    """Images that went through a backward pass, over all stages that learn.

    A stage that only measures counts where no stage learns: the linear heads of a probe are no part of a network.

    Args:
        stages: rows with `backward_passes`, and `measures`: the stage leaves the weights as they are.

    Returns:
        None: a stage is of an earlier version, which did not count.
    """
    learning = [stage for stage in stages if not stage["measures"]] or stages
    counts = [stage.get("backward_passes") for stage in learning]
    return None if None in counts else sum(count for count in counts if count is not None)
