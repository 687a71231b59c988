"""Hebbian learning for PyTorch: local rules train Conv2d and Linear layers while the network runs forward.

    from fasthebb import HebbianLearner, conv6

    network = conv6(channels=3, size=32, classes=10)
    learner = HebbianLearner(network, "hpca", lr=0.1, exclude=["classifier"])
    for images in loader:
        learner.learn(images)  # a forward pass and a step: no labels, no backward pass
    print(learner.statistics()["conv1.0"])
    learner.finish()

The rest of what `HebbianLearner` takes, by subject:

    RULES["kwta"].with_options(k=3)    a rule with options; RULES has every rule by name, RuleSetting makes one of yours
    StepSetting(normalise=True)        how an update becomes a step
    Teacher(classes=10)                labels assign units to classes; then `learner.learn(images, labels)`
    Execution(micro_batch=64)          micro-batches, processes, torch.compile, CUDA graphs

`load_model` and `load_model_and_card` read what `fasthebb train` wrote. The package imports torch, and nothing of the
command line tool `fasthebb_cli`. Each name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fasthebb.card import ModelCard
    from fasthebb.layer import LayerStatistics
    from fasthebb.learner import HebbianLearner
    from fasthebb.model_file import load_model, load_model_and_card
    from fasthebb.nets.networks import conv6, conv10
    from fasthebb.nets.softhebb import softhebb
    from fasthebb.nets.triangle import triangle
    from fasthebb.nets.whitening import Whitening
    from fasthebb.rules import Terms
    from fasthebb.settings import RULES, Execution, RuleSetting, StepSetting
    from fasthebb.teacher import Teacher

__version__ = "0.1.0"

_HOMES = {
    "RULES": "settings",
    "Execution": "settings",
    "HebbianLearner": "learner",
    "LayerStatistics": "layer",
    "ModelCard": "card",
    "RuleSetting": "settings",
    "StepSetting": "settings",
    "Teacher": "teacher",
    "Terms": "rules",
    "Whitening": "nets.whitening",
    "conv6": "nets.networks",
    "conv10": "nets.networks",
    "load_model": "model_file",
    "load_model_and_card": "model_file",
    "softhebb": "nets.softhebb",
    "triangle": "nets.triangle",
}
__all__ = [
    "RULES", "Execution", "HebbianLearner", "LayerStatistics", "ModelCard", "RuleSetting", "StepSetting", "Teacher",
    "Terms", "Whitening", "__version__", "conv6", "conv10", "load_model", "load_model_and_card", "softhebb",
    "triangle",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use, so that `import fasthebb` alone does not load torch."""
    if name in _HOMES:
        return getattr(import_module(f"fasthebb.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
