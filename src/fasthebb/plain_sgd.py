"""Plain gradient descent, w -= lr g, for updates that need no more than that.

torch.optim.SGD gives the same bits. But the first optimizer of torch.optim in a process imports the tracer of
torch.compile, 1.4 s: nearly as long as torch itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch


class Optimizer(Protocol):
    """What a learner needs of an optimizer; those of torch.optim have it."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> None: ...


class PlainSGD:
    """torch.optim.SGD without momentum, weight decay and other options.

    Args:
        param_groups: mappings with "params", a list of parameters, and "lr", a learning rate.
    """

    def __init__(self, param_groups: Sequence[Mapping[str, Any]]) -> None:
        self.param_groups = [dict(group) for group in param_groups]

    @torch.no_grad()
    def step(self) -> None:
        """A step along each parameter's gradient; one without a gradient stays."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-group["lr"])

    def state_dict(self) -> dict[str, Any]:
        """The groups without their parameters: learning rates."""
        return {"param_groups": [{key: group[key] for key in group if key != "params"} for group in self.param_groups]}

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})
