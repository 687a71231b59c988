"""Which steps are replayed, and which tensors are moved to the device. These decisions need no GPU."""

import ctypes
import resource
import subprocess
import sys

import pytest
import torch

from fasthebb_cli.compute.device import Compute, set_up
from fasthebb_cli.compute.graphs import replays
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import GpuConfig
from fasthebb_cli.settings.load import with_defaults
from fasthebb_cli.stages.heads import on_device_if_it_fits


@pytest.mark.parametrize(
    ("recordable", "graph", "names", "expected"),
    [
        (True, None, ("conv6", "hpca"), True),
        (True, None, ("torchvision:resnet18", "hpca"), True),
        (True, None, ("my_package:network", "hpca"), False),
        (True, None, ("conv6", "my_package:rule"), False),
        (True, True, ("my_package:network", "my_package:rule"), True),
        (True, False, ("conv6", "hpca"), False),
        (False, True, ("conv6", "hpca"), False),
    ],
)
def test_what_is_replayed(recordable: bool, graph: bool | None, names: tuple[str, ...], expected: bool) -> None:
    """The user's own code may branch in Python, which a recording would freeze: the user must ask for it."""
    compute = Compute(torch.device("cuda"), "fp32", channels_last=True, compile=False, recordable=recordable)
    assert replays(with_defaults(GpuConfig, graph=graph), compute, *names) is expected


def test_compiled_steps_are_not_recorded() -> None:
    with pytest.raises(InputError, match="leave one out"):
        with_defaults(GpuConfig, graph=True, compile=True)


def test_a_processor_records_nothing() -> None:
    assert not set_up(with_defaults(GpuConfig, device="cpu", graph=True)).recordable


def test_values_stay_where_a_gpu_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.zeros(100)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (799, 1000))
    assert on_device_if_it_fits(values, torch.device("cuda")) is values
    assert on_device_if_it_fits(values, torch.device("meta")).device.type == "meta"


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


SET_UP = """
import resource
import torch
from fasthebb_cli.compute.device import set_up
from fasthebb_cli.settings.config import GpuConfig
from fasthebb_cli.settings.load import with_defaults
set_up(with_defaults(GpuConfig, device="cpu", threads=2))
"""


@pytest.mark.slow
def test_numbers_too_small_for_normal_ones_are_zero_in_all_threads() -> None:
    tiny = "print(int((torch.full((1 << 20,), 1e-30) * 1e-10).count_nonzero()))"
    assert in_a_fresh_process("import torch\n" + tiny) == str(1 << 20)
    assert in_a_fresh_process(SET_UP + tiny) == "0"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_freed_memory_is_used_again() -> None:
    use = """
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    pages = 10_000_000 * 4 // resource.getpagesize()
    assert int(in_a_fresh_process(SET_UP + use)) < 5 * pages  # not 20
