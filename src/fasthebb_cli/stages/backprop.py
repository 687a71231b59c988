"""The gradients of one batch: a forward and a backward pass, replayed on a GPU as one CUDA graph."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor
from torch.optim import Optimizer

from fasthebb.replay import NotRecordable, Replay, Tensors
from fasthebb_cli.errors import RunError
from fasthebb_cli.stages.parallel import summed_gradients


@contextmanager
def recording_told() -> Iterator[None]:
    """Around what may be recorded, for the message when it can't be.

    Raises:
        RunError: that.
    """
    try:
        yield
    except NotRecordable as error:
        raise RunError(f"a step of this network can't be one CUDA graph; set gpu.graph=false ({error})") from error


class Backprop:
    """Puts the gradients of a loss into the parameters of an optimizer; its step is for the caller to make.

    Args:
        losses: given a batch's tensors, the loss to go down, a mean over this process's images, and whatever else is
            wanted of the pass.
        replay: see `Replay`.
    """

    def __init__(self, losses: Callable[..., Sequence[Tensor]], optimizer: Optimizer, *, replay: bool) -> None:
        self.losses, self.optimizer = losses, optimizer
        self.replay = Replay(self._passes) if replay else None
        self.share = 1.0

    def __call__(self, *batch: Tensor, share: float, key: Hashable = None) -> list[Tensor]:
        """What `losses` gives, detached.

        Args:
            share: this process's part of the batch's images.
            key: what else the passes depend on, and changes from step to step: which layers learn, or in which mode.

        Raises:
            RunError: a replayed pass that can't be recorded.
        """
        self.share = share
        with recording_told():
            results = self._passes(*batch) if self.replay is None else self.replay(*batch, key=(key, share))
        parameters = self._parameters()
        for parameter, gradient in zip(parameters, results[-len(parameters) :], strict=True):
            parameter.grad = gradient
        return [value for value in results[: -len(parameters)] if value is not None]

    def finish(self) -> None:
        """Lets go of the memory that recordings hold."""
        self.replay = None

    def _passes(self, *batch: Tensor) -> Tensors:
        self.optimizer.zero_grad(set_to_none=True)
        values = self.losses(*batch)
        with summed_gradients(self.optimizer):
            (values[0] * self.share).backward()
        return [*(value.detach() for value in values), *(parameter.grad for parameter in self._parameters())]

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
