"""Optimizers: any of torch.optim in pre-training, for a rule's updates or gradients; three of them in fine-tuning."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch

from fasthebb.plain_sgd import Optimizer, PlainSGD
from fasthebb_cli.data.dataset import Dataset
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import Config
from fasthebb_cli.settings.finetune import FinetuneConfig
from fasthebb_cli.settings.pretrain import PretrainConfig

# Optimizers of torch.optim that need more than an update for each parameter
UNFIT = {"LBFGS": "it asks for the loss again at other weights", "SparseAdam": "it is for sparse gradients"}


def optimizer_of(key: str, name: str, options: Mapping[str, Any]) -> Callable[..., torch.optim.Optimizer]:
    """A function from parameters, or groups of them, and a learning rate to an optimizer.

    Args:
        key: the setting that the name comes from, for the message.
        name: a class of torch.optim.
        options: its further arguments.

    Raises:
        InputError: torch has no such optimizer, or it needs more than an update.
    """
    optimizer: Any = getattr(torch.optim, name, None)
    if name in UNFIT:
        raise InputError(f"{key}={name}: {UNFIT[name]}; choose another, as SGD or Adam")
    if not (isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)):
        raise InputError(f"{key}={name}: no optimizer of torch.optim, as SGD or Adam is")
    return partial(optimizer, **options)


def rule_optimizer(key: str, name: str, options: Mapping[str, Any]) -> Callable[..., Optimizer]:
    """As `optimizer_of`, for a rule's updates. SGD without options is the library's own, which starts faster."""
    return PlainSGD if name == "SGD" and not options else optimizer_of(key, name, options)


def check_optimizer(config: Config, dataset: Dataset, settings: PretrainConfig) -> None:
    """Tries a step of one weight.

    Raises:
        InputError: there is no such optimizer, or it does not take these options.
    """
    if config.rule.name in settings.rules_without_settings or settings.lr is None:
        return
    make = rule_optimizer("pretrain.optimizer", settings.optimizer, settings.optimizer_options)
    if make is PlainSGD:
        return
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    try:
        make([{"params": [weight], "lr": settings.lr}]).step()
    except Exception as error:
        said = " ".join(str(error).split())
        raise InputError(f"pretrain.optimizer_options: {settings.optimizer} does not take them: {said}") from error


def learning_rate(settings: PretrainConfig) -> float:
    """pretrain.lr, which is the rule's learning rate unless it is set.

    Raises:
        InputError: neither is set.
    """
    if settings.lr is None:
        raise InputError("pretrain.lr has no value and rule.lr neither; set one, as in pretrain.lr=0.1")
    return settings.lr


def backprop_optimizer(settings: FinetuneConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """SGD with Nesterov's momentum, Adam or AdamW, as finetune.optimizer says, on groups of parameters."""
    fused = in_one_pass(parameter for group in groups for parameter in group["params"])
    if settings.optimizer == "SGD":
        nesterov = settings.momentum > 0
        return torch.optim.SGD(
            groups, momentum=settings.momentum, nesterov=nesterov, weight_decay=settings.weight_decay, fused=fused
        )
    made = torch.optim.Adam if settings.optimizer == "Adam" else torch.optim.AdamW
    return made(groups, weight_decay=settings.weight_decay, fused=fused)


def in_one_pass(parameters: Iterable[torch.Tensor]) -> bool | None:
    """Argument `fused` of SGD, Adam and AdamW: on a CPU a step is one pass over the weights in place of five or more.

    None: as torch chooses, which on a GPU is right.
    """
    return True if all(parameter.device.type == "cpu" for parameter in parameters) else None
