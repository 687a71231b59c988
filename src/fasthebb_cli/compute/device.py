"""Where and how numbers are computed: device, precision, memory format, threads. The only file that names a device."""

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fasthebb_cli.compute.launch import launch
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import GpuConfig

COMPILERS = (os.environ.get("CXX", "g++"), "g++", "clang++")


@dataclass(frozen=True)
class Compute:
    """A device that is ready for use, and the number format of its products."""

    device: torch.device
    precision: str
    channels_last: bool
    compile: bool
    recordable: bool  # steps may be CUDA graphs
    lacks_compiler: bool = False  # so that what was to be compiled runs eager

    def place(self, network: nn.Module) -> nn.Module:
        """The network on the device, its 4-D weights in the wanted memory format."""
        network = network.to(self.device)
        return network.to(memory_format=torch.channels_last) if self.channels_last else network

    def arrange(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 products with float32 accumulation; weights and updates stay float32."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def describe(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        size = launch().size
        processes = f", {size} processes" if size > 1 else ""
        eager = ", eager as gpu.compile finds no C++ compiler (g++ or clang++)" if self.lacks_compiler else ""
        return f"{name}, {self.precision}{threads}{processes}{eager}"


def set_up(config: GpuConfig) -> Compute:
    """Sets the process up as the gpu group says.

    Raises:
        InputError: the device is not there, or can't do what is asked.
    """
    device = _device(config.device)
    own = launch()
    if own.size > 1 and device.type != "cpu" and device.index is None:  # one device a process; no test here has two
        device = torch.device(device.type, own.local_rank % torch.accelerator.device_count())
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)  # so that "the" device's random generator is its own
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.precision == "tf32" and device.type != "cuda":
        raise InputError(f"gpu.precision=tf32 needs gpu.device=cuda, not {device.type}; use fp32 or bf16")
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.benchmark = not config.deterministic
    lacks_compiler = config.compile and device.type == "cpu" and not any(map(shutil.which, COMPILERS))
    compiles = config.compile and not lacks_compiler
    # not what torch.compile makes, which sees to its kernels itself, nor sums over processes
    recordable = device.type == "cuda" and not compiles and own.size == 1
    return Compute(device, config.precision, config.channels_last, compiles, recordable, lacks_compiler)


def replays(config: GpuConfig, compute: Compute, *names: str) -> bool:
    """Whether steps are replayed: by gpu.graph, or where that is null, unless something of the user's own is among what
    they run, which may decide in Python what a recording would freeze.

    Args:
        names: of the network and the rule; one's own are my_package.module:function.
    """
    own = any(":" in name and not name.startswith("torchvision:") for name in names)
    return compute.recordable and (not own if config.graph is None else config.graph)


def _device(name: str) -> torch.device:
    """`auto` is the first accelerator that torch finds (cuda, mps, xpu), else the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"gpu.device: unknown device {name!r}; use auto, cpu, cuda, cuda:1, mps or xpu") from error
    if device.type == "cpu":
        return device
    if found is None or found.type != device.type:
        raise InputError(f"gpu.device={name}: torch finds no such device here; it finds: {found or 'cpu only'}")
    if device.index is not None and device.index >= torch.accelerator.device_count():
        raise InputError(f"gpu.device={name}: there are only {torch.accelerator.device_count()} of this kind")
    return device
