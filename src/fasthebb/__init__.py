"""Hebbian learning for PyTorch networks: local rules that train Conv2d and Linear layers in the forward pass.

    from fasthebb import HebbianLearner, conv6

It imports torch, and nothing of the command line tool that is built on it, `fasthebb_cli`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fasthebb.learner import HebbianLearner
    from fasthebb.model_file import load_model
    from fasthebb.nets.networks import conv6, conv10
    from fasthebb.settings import RULES

__version__ = "0.1.0"
__all__ = ["RULES", "HebbianLearner", "__version__", "conv6", "conv10", "load_model"]

_HOMES = {
    "RULES": "settings",
    "HebbianLearner": "learner",
    "conv6": "nets.networks",
    "conv10": "nets.networks",
    "load_model": "model_file",
}


def __getattr__(name: str) -> Any:
    """The names above, imported when they are first asked for: who wants the version alone does not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(f"fasthebb.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
