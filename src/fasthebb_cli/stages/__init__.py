"""The stages by kind: each a function from a Context to a Task."""

from collections.abc import Callable

from fasthebb_cli.stages.closed_form import closed_form
from fasthebb_cli.stages.evaluate import evaluate
from fasthebb_cli.stages.finetune import finetune
from fasthebb_cli.stages.pretrain import pretrain
from fasthebb_cli.stages.probe import probe
from fasthebb_cli.stages.task import Context, Task

STAGES: dict[str, Callable[[Context], Task]] = {
    "pretrain": pretrain,
    "finetune": finetune,
    "probe": probe,
    "evaluate": evaluate,
    "closed_form": closed_form,
}

__all__ = ["STAGES", "Context", "Task"]
