"""The optimizer that a rule's or the autoencoder's updates go through: any of torch.optim that needs nothing else."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.pretrain import PretrainConfig

# What of torch.optim can't take an update that is simply there
UNFIT = {"LBFGS": "it asks for the loss again at other weights", "SparseAdam": "it is for sparse gradients"}


def optimizer_of(key: str, name: str, options: Mapping[str, Any]) -> Callable[..., torch.optim.Optimizer]:
    """Takes parameters or groups of them and a learning rate; `key` is the setting that the name comes from.

    Raises:
        InputError: torch has no such optimizer, or it asks for more than an update.
    """
    optimizer: Any = getattr(torch.optim, name, None)
    if name in UNFIT:
        raise InputError(f"{key}={name}: {UNFIT[name]}; choose another, as SGD or Adam")
    if not (isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)):
        raise InputError(f"{key}={name}: no optimizer of torch.optim, as SGD or Adam is")
    return partial(optimizer, **options)


def learning_rate(settings: PretrainConfig) -> float:
    """pretrain.lr, which comes from the rule unless it is set.

    Raises:
        InputError: neither has one.
    """
    if settings.lr is None:
        raise InputError("pretrain.lr has no value and rule.lr neither; set one, as in pretrain.lr=0.1")
    return settings.lr
