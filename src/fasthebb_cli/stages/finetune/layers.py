"""Which layers fine-tuning trains in which epoch, and at what rate.

The features are all of the network but its child `classifier`. Epochs come in two phases: first the classifier learns
alone, then all layers learn together. Each phase runs through the whole schedule.
"""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from fasthebb.patterns import last_match
from fasthebb.plain_sgd import Optimizer
from fasthebb_cli.data.loading import step_count
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.finetune import FinetuneConfig
from fasthebb_cli.stages.schedules import set_rate

EPOCHS = 20  # as in the papers
MINIMUM_STEPS = 200  # with few labels an epoch has few steps


@dataclass(frozen=True)
class Phases:
    """The epochs of fine-tuning.

    Args:
        alone, together: epochs in which the classifier learns alone, and in which all layers learn.
        steps: steps in an epoch.
        features_lr: factor on the features' learning rate; 0: they are always frozen.
        pretrained: the features are frozen while the classifier learns alone. Those of an untrained network are not.
    """

    alone: int
    together: int
    steps: int
    features_lr: float
    pretrained: bool

    @property
    def epochs(self) -> int:
        return self.alone + self.together

    def frozen(self, epoch: int) -> bool:
        """Whether the features are frozen in an epoch."""
        return self.features_lr == 0 or (epoch < self.alone and self.pretrained)

    def set_rate(self, optimizer: Optimizer, schedule: str, epoch: int, step: int) -> None:
        """Sets each group's learning rate for one step."""
        start, length = (0, self.alone) if epoch < self.alone else (self.alone, self.together)
        set_rate(optimizer, schedule, step, self.steps, epoch - start, length)


def phases_of(settings: FinetuneConfig, samples: int, *, untrained: bool) -> Phases:
    """The phases that the settings ask for.

    Args:
        samples: images in an epoch.
        untrained: the features are random. They learn in all epochs at the full rate, unless features_lr is 0.
    """
    steps = step_count(samples, settings.batch_size)
    together = settings.epochs or max(EPOCHS, math.ceil(MINIMUM_STEPS / steps))
    features_lr = 1.0 if untrained and settings.features_lr else settings.features_lr
    return Phases(settings.classifier_epochs, together, steps, features_lr, pretrained=not untrained)


@dataclass(frozen=True)
class Layers:
    """The parts of a network; they share its parameters.

    Args:
        still: layers of the features whose rate has the factor 0 (`layer_lr`).
    """

    classifier: nn.Module
    features: nn.Module
    still: list[nn.Module]

    def prepare_step(self, *, frozen: bool) -> None:
        """Training mode and gradients for all layers that learn in a step, evaluation mode for the others.

        Args:
            frozen: no layer of the features learns.
        """
        set_frozen(self.features, frozen=frozen)
        for module in self.still:
            set_frozen(module, frozen=True)
        self.classifier.train()


def layers_of(network: nn.Module, settings: FinetuneConfig) -> Layers:
    """Raises:
    InputError: the network has no child called `classifier`.
    """
    children = dict(network.named_children())
    if "classifier" not in children:
        raise InputError(f"model: the network has no child called classifier; it has: {', '.join(children)}")
    features = nn.ModuleDict({name: module for name, module in children.items() if name != "classifier"})
    leaves = [(name, module) for name, module in features.named_modules() if not any(module.children())]
    still = [module for name, module in leaves if last_match(name, settings.layer_lr, 1.0) == 0]
    return Layers(children["classifier"], features, still)


def set_frozen(module: nn.Module, *, frozen: bool) -> None:
    """Frozen layers get no gradient. They are in evaluation mode: batch norm keeps its statistics, dropout is off."""
    module.requires_grad_(not frozen)
    module.train(not frozen)


def parameter_groups(layers: Layers, settings: FinetuneConfig, features_lr: float) -> list[dict[str, Any]]:
    """For an optimizer: the features' parameters, one group for each factor in `layer_lr`, then the classifier's.

    Args:
        features_lr: factor on the features' learning rate.
    """
    by_factor: dict[float, list[nn.Parameter]] = {} if settings.layer_lr else {1.0: []}
    for name, parameter in layers.features.named_parameters():
        factor = last_match(name.rpartition(".")[0], settings.layer_lr, 1.0)
        by_factor.setdefault(factor, []).append(parameter)
    rate = settings.lr * features_lr
    features = [{"params": parameters, "lr": rate * factor} for factor, parameters in by_factor.items()]
    return [*features, {"params": list(layers.classifier.parameters()), "lr": settings.lr}]
