"""Runs a task's epochs and steps. A process may be killed at any moment: started again, it ends in the same bits.

A checkpoint is saved every 30 seconds (FASTHEBB_SAVE_SECONDS), after a step; one that takes long to write, less often.
It holds all that the next step depends on: weights, the task's state, the states of the random generators, and the
position. All saved numbers are finite.
"""

import math
import platform
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fasthebb_cli import __version__
from fasthebb_cli.compute import processes
from fasthebb_cli.compute.device import Compute
from fasthebb_cli.compute.launch import seconds_of
from fasthebb_cli.compute.signals import STOP_SIGNALS
from fasthebb_cli.errors import InputError, Interrupted, RunError
from fasthebb_cli.run.checkpoint import REMEDY, save_checkpoint
from fasthebb_cli.run.directory import CHECKPOINT_FILE
from fasthebb_cli.run.record import Record
from fasthebb_cli.stages import Task

SAVE_VARIABLE = "FASTHEBB_SAVE_SECONDS"
WORK = 20  # times as long as writing a checkpoint takes: least time until the next


class Display(Protocol):
    def advance(self, images: int) -> None: ...
    def epoch_done(self, epoch: int, metrics: dict[str, Any], warnings: list[str]) -> None: ...


@dataclass
class Position:
    """Where a stage stands: the next step is `step` of `epoch`, both counted from 0.

    Args:
        seconds: of work so far.
        records: metrics of the finished epochs.
        stopped: a signal came while the last epoch of a task without checkpoints ended. The stage keeps its results,
            and no other stage follows.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    records: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False


@dataclass(frozen=True)
class Session:
    """Where a task runs, and what its checkpoints say of it.

    Args:
        directory: the stage's.
        config: the composed configuration, for whoever reads a checkpoint.
    """

    directory: Path
    fingerprint: str
    config: dict[str, Any]
    compute: Compute


def run_task(
    task: Task, network: nn.Module, position: Position, session: Session, record: Record, display: Display
) -> None:
    """Does what is left of the task and moves `position` on.

    Raises:
        Interrupted: one of STOP_SIGNALS came; a checkpoint is saved.
        RunError: a weight is no longer finite; the last checkpoint stays.
    """
    clock = saved = time.perf_counter()
    pause = save_seconds()
    work = 0.0  # since the last checkpoint, as long as that took; not if the user wants one after each step

    def save(epoch: int, step: int) -> None:
        nonlocal saved, work
        began = time.perf_counter()
        check_finite(network)
        position.epoch, position.step = epoch, step
        state = _state(task, network, position, session, time.perf_counter() - clock)
        if processes.is_first():
            save_checkpoint(session.directory / CHECKPOINT_FILE, state)
        processes.meet()
        saved = time.perf_counter()
        work = WORK * (saved - began) if pause else 0.0

    def must_stop(epoch: int, step: int, pause: float) -> bool:
        """Whether a signal asks for a stop. Saves a checkpoint then, and when the last one is `pause` seconds old."""
        due = processes.decide(stop=stop.requested, save=time.perf_counter() - saved > max(pause, work))
        if task.resumable and (due.stop or due.save):
            save(epoch, step)
        return due.stop

    with stop_requests() as stop:
        for epoch in range(position.epoch, task.epochs):
            if task.ended():
                break
            began = time.perf_counter()
            first = position.step if epoch == position.epoch else 0
            for step, batch in enumerate(task.batches(epoch, first), first):
                task.step(epoch, step, batch)
                display.advance(batch.total)
                if must_stop(epoch, step + 1, pause):
                    raise _interrupted(task, f"epoch {epoch + 1}, step {step + 1} of {task.steps}")
            for _ in task.validate(epoch):
                if must_stop(epoch, task.steps, math.inf):
                    raise _interrupted(task, f"epoch {epoch + 1}, its validation")
            metrics = task.end_epoch(epoch)
            check_finite(network)
            seconds = time.perf_counter() - began
            seen = task.samples - first * task.batch_size
            speed = seen / seconds if seen > 0 else None
            line = {"epoch": epoch + 1} | metrics | {"seconds": round(seconds, 3), "images_per_second": speed}
            record.add(line)
            position.records.append(line)
            display.epoch_done(epoch + 1, metrics | {"images_per_second": speed}, task.warnings(metrics))
            if must_stop(epoch + 1, 0, pause / 2) and task.resumable:
                raise _interrupted(task, f"epoch {epoch + 1}, its end")
    position.stopped = processes.decide(stop=stop.requested).stop  # asked while the last checkpoint was written, too
    position.seconds += time.perf_counter() - clock


def _interrupted(task: Task, where: str) -> Interrupted:
    return Interrupted(where if task.resumable else "the start")


def save_seconds() -> float:
    """Seconds between checkpoints."""
    return seconds_of(SAVE_VARIABLE, 30)


def restore(task: Task, network: nn.Module, state: dict[str, Any], checkpoint: Path | None) -> Position:
    """Puts task, network and random generators into the state that the checkpoint holds.

    Args:
        checkpoint: the file that the state comes from, for messages.

    Raises:
        InputError: the state does not fit.
    """
    try:
        network.load_state_dict(state["network"])
        for name, part in task.state.items():
            part.load_state_dict(state["task"][name])
        position = Position(state["epoch"], state["step"], state["seconds"], list(state["records"]))
        _restore_generators(state["random"])
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"checkpoint {checkpoint} does not fit this stage; {REMEDY}") from error
    return position


def _restore_generators(states: list[dict[str, Tensor]]) -> None:
    """States by rank. A process of a higher rank than there are states draws from fresh generators."""
    if processes.rank() < len(states):
        state = states[processes.rank()]
        torch.set_rng_state(state["cpu"])
        if "device" in state:
            torch.get_device_module().set_rng_state(state["device"])


def check_finite(network: nn.Module) -> None:
    floats = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    if not floats or torch.stack([value.sum().cpu().double() for value in floats.values()]).isfinite().all():
        return  # a sum is finite only if all its terms are
    for name, value in floats.items():
        if not torch.isfinite(value).all():
            raise RunError(f"layer {name} is not finite any more; lower the learning rate (pretrain.lr or finetune.lr)")


def _state(task: Task, network: nn.Module, position: Position, session: Session, seconds: float) -> dict[str, Any]:
    random = {"cpu": torch.get_rng_state()}
    if session.compute.device.type != "cpu":
        random["device"] = torch.get_device_module().get_rng_state()
    return {
        "fingerprint": session.fingerprint,
        "epoch": position.epoch,
        "step": position.step,
        "seconds": position.seconds + seconds,
        "records": position.records,
        "network": network.state_dict(),
        "task": {name: part.state_dict() for name, part in task.state.items()},
        "random": processes.gathered(random),
        "config": session.config,
        "versions": versions(),
    }


@cache
def versions() -> dict[str, str]:
    """Versions of what computes, and the git revision of a checkout."""
    here = Path(__file__).parent
    git = subprocess.run(["git", "-C", str(here), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {
        "fasthebb": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a TorchVersion is not loaded by weights_only
        "torchvision": metadata.version("torchvision"),
        "git": git.stdout.strip() if git.returncode == 0 else "",
    }


class _Stop:
    requested = False


@contextmanager
def stop_requests() -> Iterator[_Stop]:
    """STOP_SIGNALS ask for a stop at the end of the step; a second Ctrl-C does not wait."""
    stop = _Stop()

    def on_signal(number: int, _: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True

    before = {number: signal.signal(number, on_signal) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
