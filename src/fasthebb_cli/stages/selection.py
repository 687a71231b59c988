"""Which epoch counts, and when no further one is worth it: by validation accuracy, only when asked for."""

from typing import Any

from torch import Tensor, nn


class Best:
    """The weights of the best epoch so far by validation accuracy, the first one among equals."""

    def __init__(self, network: nn.Module) -> None:
        self.top1 = -1.0
        self.weights: dict[str, Tensor] = {}

    def offer(self, top1: float, network: nn.Module) -> None:
        if top1 > self.top1:
            self.top1 = top1
            self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def restore(self, network: nn.Module) -> None:
        network.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"top1": self.top1, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.top1, self.weights = state["top1"], state["weights"]


class Patience:
    """Counts epochs since the validation accuracy last rose.

    Args:
        limit: so many without a rise are enough.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.top1 = -1.0
        self.waited = 0

    def offer(self, top1: float, *, counts: bool = True) -> None:
        """An epoch's accuracy; one that does not count can be the highest but is not waited for."""
        self.waited = 0 if top1 > self.top1 or not counts else self.waited + 1
        self.top1 = max(self.top1, top1)

    @property
    def ended(self) -> str:
        """Why no further epoch is wanted; empty if one is."""
        enough = self.waited >= self.limit
        return f"the validation top-1 has not risen for {self.limit} (finetune.patience)" if enough else ""

    def state_dict(self) -> dict[str, Any]:
        return {"top1": self.top1, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.top1, self.waited = state["top1"], state["waited"]
