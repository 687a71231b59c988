"""Supervised training on the labelled subset, by one of three protocols, each a file that reads from top to bottom."""

from fasthebb_cli.settings.finetune import FinetuneConfig
from fasthebb_cli.stages.finetune.backprop import by_backprop
from fasthebb_cli.stages.finetune.class_means import by_class_means
from fasthebb_cli.stages.finetune.rule_beside_backprop import by_rule_beside_backprop
from fasthebb_cli.stages.task import Context, Task


def finetune(context: Context) -> Task:
    """Chooses the protocol: `classifier=hebbian`, layers named by `by_rule`, or else plain backprop."""
    settings = context.settings
    assert isinstance(settings, FinetuneConfig)
    if settings.classifier == "hebbian":
        return by_class_means(context)
    if settings.by_rule:
        return by_rule_beside_backprop(context)
    return by_backprop(context)
