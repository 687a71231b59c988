"""Learning-rate schedules: pure functions of the position, so a resumed run has no scheduler to restore."""

import math
from collections.abc import Callable

from fasthebb.plain_sgd import Optimizer

# (progress, epoch, epochs) -> factor on the learning rate. progress in [0, 1): fraction of all steps that are done;
# epoch in 0 .. epochs - 1: for schedules that change once an epoch
Schedule = Callable[[float, int, int], float]


def constant(progress: float, epoch: int, epochs: int) -> float:
    return 1.0


def linear(progress: float, epoch: int, epochs: int) -> float:
    """From 1 to 0 in a straight line."""
    return 1.0 - progress


def cosine(progress: float, epoch: int, epochs: int) -> float:
    """From 1 to 0 along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def one_cycle(progress: float, epoch: int, epochs: int) -> float:
    """From 1/25 up to 1 in the first 30 %, then down to 0, both along a cosine (Smith and Topin 2019)."""
    if progress < 0.3:
        return 1 / 25 + (1 - 1 / 25) * 0.5 * (1 - math.cos(math.pi * progress / 0.3))
    return cosine((progress - 0.3) / 0.7, epoch, epochs)


def halving(progress: float, epoch: int, epochs: int) -> float:
    """Constant for half the epochs, then halved every epoch (the FastHebb papers: epochs 10 to 19 of 20)."""
    return 0.5 ** max(0, epoch - epochs // 2 + 1)


def softhebb(progress: float, epoch: int, epochs: int) -> float:
    """Halved at 20, 35, 50, 60, 70, 80 and 90 % of the epochs (Journé et al. 2023)."""
    return 0.5 ** sum(epoch >= share * epochs for share in (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9))


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "halving": halving,
    "softhebb": softhebb,
}


def set_rate(optimizer: Optimizer, schedule: str, step: int, steps: int, epoch: int, epochs: int) -> None:
    """Sets each parameter group's learning rate for one step.

    Args:
        step, steps: the step within the epoch, of so many.
        epoch, epochs: the epoch, of so many.
    """
    factor = SCHEDULES[schedule]((epoch * steps + step) / (epochs * steps), epoch, epochs)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
