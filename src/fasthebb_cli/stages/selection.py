"""Which epoch's weights fine-tuning keeps, and when it ends early. Validation labels are read only when asked for."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from fasthebb_cli.settings.finetune import FinetuneConfig
from fasthebb_cli.stages.scores import accuracy
from fasthebb_cli.stages.task import Context


class Selection:
    """`select=last` keeps the last epoch's weights and reads no validation label. `select=best` scores the network on
    the validation images after every epoch and keeps the weights of the highest top-1 (the first, if several are
    equal). With `patience=P` it ends the stage after P epochs in a row without a higher top-1.
    """

    def __init__(self, context: Context, settings: FinetuneConfig) -> None:
        self.context, self.settings = context, settings
        self.reads_validation = settings.select == "best"
        self.top1, self.weights, self.waited = -1.0, dict[str, Tensor](), 0
        self._scores: dict[str, float] = {}

    def validate(self, epoch: int) -> Iterator[None]:
        """Scores the network on the validation images; yields after every batch."""
        if self.reads_validation:
            images = self.context.dataset.validation
            self._scores = yield from accuracy(self.context, images, self.settings.batch_size)

    def end_epoch(self, *, waits: bool = True) -> dict[str, float]:
        """Keeps the weights if they are the best so far, and returns the validation metrics, if there are any.

        Args:
            waits: the epoch counts for `patience`.
        """
        if not self.reads_validation:
            return {}
        is_best = self._scores["top1"] > self.top1
        self.waited = 0 if is_best or not waits else self.waited + 1
        if is_best:
            self.top1 = self._scores["top1"]
            self.weights = {name: value.detach().clone() for name, value in self.context.network.state_dict().items()}
        return {f"validation_{name}": value for name, value in self._scores.items()}

    def ended(self) -> str:
        """The reason why no further epoch follows; empty if one does."""
        patience = self.settings.patience
        if patience is None or self.waited < patience:
            return ""
        return f"the validation top-1 has not risen for {patience} (finetune.patience)"

    def finish(self) -> None:
        """Gives the network the weights that were kept."""
        if self.reads_validation:
            self.context.network.load_state_dict(self.weights)

    def results(self) -> dict[str, Any]:
        """For `Task.finish`: the validation top-1 of the weights that were kept, and the number of labels read."""
        if not self.reads_validation:
            return {}
        return {"top1": self.top1, "labels_validation": len(self.context.dataset.validation)}

    def state_dict(self) -> dict[str, Any]:
        return {"top1": self.top1, "weights": self.weights, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.top1, self.weights, self.waited = state["top1"], state["weights"], state["waited"]
