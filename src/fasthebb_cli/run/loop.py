"""Runs a task's epochs and steps so that it can be killed at any moment and goes on to the same bits.

A checkpoint is taken every 30 seconds (FASTHEBB_SAVE_SECONDS) at a step's end and holds all that the next step depends
on: weights, the task's state, the random generators and the position. Nothing that is not finite is ever saved.
"""

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
from torch import nn

from fasthebb_cli import __version__
from fasthebb_cli.compute import processes
from fasthebb_cli.compute.device import Compute
from fasthebb_cli.compute.launch import seconds_of
from fasthebb_cli.compute.signals import STOP_SIGNALS
from fasthebb_cli.errors import Interrupted, RunError
from fasthebb_cli.run.checkpoint import save_checkpoint
from fasthebb_cli.run.record import Record
from fasthebb_cli.stages import Task

SAVE_VARIABLE = "FASTHEBB_SAVE_SECONDS"


class Display(Protocol):
    def advance(self, images: int) -> None: ...
    def epoch_done(self, epoch: int, metrics: dict[str, Any], warnings: list[str]) -> None: ...


@dataclass
class Position:
    """Where a stage stands: `step` of `epoch` is the next to do, after `seconds` of work.

    Args:
        stopped: the task is done and its results are to be kept, but nothing may follow.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    records: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False


@dataclass(frozen=True)
class Session:
    """Where a task is run and kept."""

    checkpoint: Path
    fingerprint: str
    config: dict[str, Any]
    compute: Compute


def run_task(
    task: Task, network: nn.Module, position: Position, session: Session, record: Record, display: Display
) -> Position:
    """Does what is left of the task.

    Raises:
        Interrupted: after saving, on one of STOP_SIGNALS.
        RunError: a weight is no longer finite; the last checkpoint stays.
    """
    clock = time.perf_counter()
    saved = clock
    pause = save_seconds()

    def save(epoch: int, step: int) -> None:
        nonlocal saved
        if not task.resumable:
            return
        check_finite(network)
        position.epoch, position.step = epoch, step
        state = _state(task, network, position, session, time.perf_counter() - clock)
        if processes.is_first():
            save_checkpoint(session.checkpoint, state)
        processes.meet()
        saved = time.perf_counter()

    with stop_requests() as stop:
        for epoch in range(position.epoch, task.epochs):
            if task.ended():
                break
            began = time.perf_counter()
            first = position.step if epoch == position.epoch else 0
            for step, batch in enumerate(task.batches(epoch, first), first):
                task.step(epoch, step, batch)
                display.advance(batch.total)
                due = processes.decide(stop=stop.requested, save=time.perf_counter() - saved > pause)
                if due.stop or due.save:
                    save(epoch, step + 1)
                    if due.stop:
                        raise _interrupted(task, f"epoch {epoch + 1}, step {step + 1} of {task.steps}")
            for _ in task.validate(epoch):
                if processes.decide(stop=stop.requested).stop:
                    save(epoch, task.steps)
                    raise _interrupted(task, f"epoch {epoch + 1}, its validation")
            metrics = task.end_epoch(epoch)
            check_finite(network)
            seconds = time.perf_counter() - began
            seen = task.samples - first * task.batch_size
            speed = seen / seconds if seen > 0 else None
            record.add({"epoch": epoch + 1} | metrics | {"seconds": round(seconds, 3), "images_per_second": speed})
            position.records = record.epochs
            display.epoch_done(epoch + 1, metrics | {"images_per_second": speed}, task.warnings(metrics))
            due = processes.decide(stop=stop.requested, save=time.perf_counter() - saved > pause / 2)
            if due.stop or due.save:
                save(epoch + 1, 0)
                if due.stop and task.resumable:
                    raise _interrupted(task, f"epoch {epoch + 1}, its end")
    position.stopped = processes.decide(stop=stop.requested).stop  # asked while the last checkpoint was written, too
    position.seconds += time.perf_counter() - clock
    return position


def _interrupted(task: Task, where: str) -> Interrupted:
    return Interrupted(where if task.resumable else "the start")


def save_seconds() -> float:
    """Seconds between checkpoints."""
    return seconds_of(SAVE_VARIABLE, 30)


def restore(task: Task, network: nn.Module, state: dict[str, Any]) -> Position:
    """Puts task, network and random generators where the checkpoint left them."""
    network.load_state_dict(state["network"])
    for name, part in task.state.items():
        part.load_state_dict(state["task"][name])
    if processes.rank() < len(state["random"]):  # more processes than before draw from fresh generators
        random = state["random"][processes.rank()]
        torch.set_rng_state(random["cpu"])
        if "device" in random:
            torch.get_device_module().set_rng_state(random["device"])
    return Position(state["epoch"], state["step"], state["seconds"], state["records"])


def check_finite(network: nn.Module) -> None:
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
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
