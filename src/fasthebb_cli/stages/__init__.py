"""The stages by kind: each a function from a Context to a Task."""

from collections.abc import Callable
from typing import Any

from fasthebb_cli.data.dataset import Dataset
from fasthebb_cli.settings.config import Config
from fasthebb_cli.stages.closed_form import check_closed_form, closed_form
from fasthebb_cli.stages.components import components
from fasthebb_cli.stages.evaluate import evaluate
from fasthebb_cli.stages.finetune import finetune
from fasthebb_cli.stages.optimizers import check_optimizer
from fasthebb_cli.stages.pretrain import pretrain
from fasthebb_cli.stages.probe import probe
from fasthebb_cli.stages.task import Context, Task

STAGES: dict[str, Callable[[Context], Task]] = {
    "pretrain": pretrain,
    "finetune": finetune,
    "probe": probe,
    "evaluate": evaluate,
    "components": components,
    "closed_form": closed_form,
}
# What a kind asks of images and labels, before any stage of the cell runs; it raises an InputError
CHECKS: dict[str, Callable[[Config, Dataset, Any], None]] = {
    "closed_form": check_closed_form,
    "pretrain": check_optimizer,
}

__all__ = ["CHECKS", "STAGES", "Context", "Task"]
