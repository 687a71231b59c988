"""Runs a function in several processes that know of each other, as torchrun would start them.

    results = together("tests.fasthebb.test_many:train", 2)

It returns what each process's call returned; they may differ only where that is meant. The processes are forked from
one that has torch imported already, and each call has new ones, so that nothing is left of the call before.
"""

import tempfile
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fasthebb_cli.compute import processes
from tests.lives import Life

SIZES = (2, pytest.param(4, marks=pytest.mark.marathon))  # processes; four are many for a small machine


def together(name: str, size: int, *arguments: Any) -> list[Any]:
    """The results of `module:function`, called by `size` processes at once."""
    with tempfile.TemporaryDirectory() as folder:
        life = Life(partial(_call, name, Path(folder), *arguments), Path(folder) / "log", size=size)
        assert life.wait() == 0, life.text()
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(size)]


def _call(name: str, folder: Path, *arguments: Any) -> None:
    processes.join()
    module, _, function = name.partition(":")
    result = getattr(import_module(module), function)(*arguments)
    torch.save(result, folder / f"{processes.rank()}.pt")
    processes.leave()


def sums_told(events: list[str]) -> None:
    """From now on every sum over processes that travels by itself says when it is sent and when it is waited for."""
    start: Any = dist.all_reduce

    class Told(NamedTuple):
        work: Any

        def wait(self, *arguments: Any) -> None:
            events.append("wait")
            self.work.wait(*arguments)

    def told(value: Tensor, *arguments: Any, async_op: bool = False, **settings: Any) -> Any:
        work = start(value, *arguments, async_op=async_op, **settings)
        if not async_op:
            return work
        events.append(f"send {value.numel()}")
        return Told(work)

    patch.object(dist, "all_reduce", told).start()
