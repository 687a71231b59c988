"""Hebbian pre-training, supervised fine-tuning and evaluation of image networks."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load_model`, without torch for those who only ask for the version."""
    if name == "load_model":
        from fasthebb_cli.run.weights import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
