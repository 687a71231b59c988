"""How numbers are computed: device, precision, memory format, threads. The only file that chooses a device."""

import ctypes
import os
import shutil
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fasthebb_cli.compute.launch import launch
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import GpuConfig

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
COMPILERS = (os.environ.get("CXX", "g++"), "g++", "clang++")


@dataclass(frozen=True)
class Compute:
    """A device that is ready for use.

    Args:
        precision: of matrix products and convolutions: fp32, tf32 or bf16.
        channels_last: the memory format of images and 4-D weights.
        compile: torch.compile is used.
        recordable: steps may be recorded as CUDA graphs.
        lacks_compiler: gpu.compile is set, but there is no C++ compiler, so everything runs eager.
    """

    device: torch.device
    precision: str
    channels_last: bool
    compile: bool
    recordable: bool
    lacks_compiler: bool = False

    def place(self, network: nn.Module) -> nn.Module:
        """Moves the network to the device, its 4-D weights in the chosen memory format."""
        network = network.to(self.device)
        return network.to(memory_format=torch.channels_last) if self.channels_last else network

    def arrange(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in the chosen memory format."""
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def autocast(self) -> AbstractContextManager[object]:
        """For forward passes: bf16 products that are accumulated in float32, if the precision is bf16."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def describe(self) -> str:
        """One line for the user: device, precision, threads and processes."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        size = launch().size
        processes = f", {size} processes" if size > 1 else ""
        eager = ", eager as gpu.compile finds no C++ compiler (g++ or clang++)" if self.lacks_compiler else ""
        return f"{name}, {self.precision}{threads}{processes}{eager}"


def set_up(config: GpuConfig) -> Compute:
    """Applies the settings of the group `gpu` to this process.

    Raises:
        InputError: there is no such device, or it does not have the precision.
    """
    device = _device(config.device)
    own = launch()
    if own.size > 1 and device.type != "cpu" and device.index is None:  # one device for each process; no test has two
        device = torch.device(device.type, own.local_rank % torch.accelerator.device_count())
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)  # torch's current device, whose random generator is saved
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.precision == "tf32" and device.type != "cuda":
        raise InputError(f"gpu.precision=tf32 needs gpu.device=cuda, not {device.type}; use fp32 or bf16")
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    if device.type == "cpu":
        _keep_freed_memory()
        # softmax gates reach 1e-40, where a product takes fifty times as long; threads that start later inherit this
        torch.set_flush_denormal(True)
    if config.compile:
        torch.use_deterministic_algorithms(config.deterministic)
    else:  # the same without torch.compile, which takes more than a second to import
        torch.set_deterministic_debug_mode("error" if config.deterministic else "default")
    torch.backends.cudnn.benchmark = not config.deterministic
    lacks_compiler = config.compile and device.type == "cpu" and not any(map(shutil.which, COMPILERS))
    compiles = config.compile and not lacks_compiler
    # torch.compile launches its kernels in its own way, and sums over processes can't be recorded
    recordable = device.type == "cuda" and not compiles and own.size == 1
    return Compute(device, config.precision, config.channels_last, compiles, recordable, lacks_compiler)


def _keep_freed_memory() -> None:
    """Tells glibc to use freed blocks again instead of giving them back to the system, whatever their size.

    Maps of a batch take tens of megabytes. Memory that comes fresh from the system is cleared page by page at its first
    use: conv features took 1.4 times as long so. Other C libraries are left as they are.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for threshold in (1 << 25, 1 << 30):  # the second is refused, and changes nothing, by an older glibc
            mallopt(M_MMAP_THRESHOLD, threshold)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def _device(name: str) -> torch.device:
    """The device of that name; `auto`: the accelerator that torch finds (cuda, mps, xpu), else the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"gpu.device: unknown device {name!r}; use auto, cpu, cuda, cuda:1, mps or xpu") from error
    if device.type == "cpu" and device.index:
        raise InputError(f"gpu.device={name}: there is one cpu; use cpu, and gpu.threads for how many threads it gets")
    if device.type == "cpu":
        return torch.device("cpu")
    if found is None or found.type != device.type:
        raise InputError(f"gpu.device={name}: torch finds no such device here; it finds: {found or 'cpu only'}")
    if device.index is not None and device.index >= torch.accelerator.device_count():
        raise InputError(f"gpu.device={name}: there are only {torch.accelerator.device_count()} of this kind")
    return device
