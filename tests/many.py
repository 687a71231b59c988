"""Runs a function in several processes that know of each other, as torchrun would start them.

    results = together("tests.fasthebb.test_many:train", 2)

It returns what each process's call returned; they may differ only where that is meant.
"""

import os
import socket
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from fasthebb_cli.compute import processes


def together(name: str, size: int) -> list[Any]:
    """The results of `module:function` without arguments, called by `size` processes at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.many", name, folder],
                env=os.environ | environment(rank, size, port),
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        errors = [process.communicate(timeout=240)[1] for process in started]
        assert not any(process.returncode for process in started), "\n".join(errors)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(size)]


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


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    return {
        "TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def called(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)()


if __name__ == "__main__":
    processes.join()
    result = called(sys.argv[1])
    torch.save(result, Path(sys.argv[2]) / f"{processes.rank()}.pt")
    processes.leave()
