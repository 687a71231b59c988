"""The optimizer that pre-training is asked for: any of torch.optim."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fasthebb_cli.config import PretrainConfig
from fasthebb_cli.errors import InputError


def optimizer_of(settings: PretrainConfig) -> Callable[..., torch.optim.Optimizer]:
    """Takes parameters or groups of them and a learning rate.

    Raises:
        InputError: torch has no such optimizer.
    """
    optimizer: Any = getattr(torch.optim, settings.optimizer, None)
    if not (isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)):
        raise InputError(f"pretrain.optimizer={settings.optimizer}: no optimizer of torch.optim, as SGD or Adam is")
    return partial(optimizer, **settings.optimizer_options)


def learning_rate(settings: PretrainConfig) -> float:
    """pretrain.lr, which comes from the rule unless it is set.

    Raises:
        InputError: neither has one.
    """
    if settings.lr is None:
        raise InputError("pretrain.lr has no value and rule.lr neither; set one, as in pretrain.lr=0.1")
    return settings.lr
