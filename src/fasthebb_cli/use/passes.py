"""One pass of a trained network over a folder, which all commands that use a model share.

This file reads the settings, prepares the images as the model's card says, and names damaged files, which are left out.
A signal ends the pass and leaves no unfinished file behind.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fasthebb.card import ModelCard
from fasthebb.model_file import load_model_and_card
from fasthebb_cli.compute.device import Compute
from fasthebb_cli.compute.device import set_up as prepare_compute
from fasthebb_cli.compute.signals import STOP_SIGNALS
from fasthebb_cli.console.formats import clock, pace
from fasthebb_cli.console.progress import FolderProgress
from fasthebb_cli.console.view import View
from fasthebb_cli.data.files import ImageFile
from fasthebb_cli.data.transforms import to_float
from fasthebb_cli.errors import InputError, RunError, bad_input
from fasthebb_cli.settings.checks import at_least, is_colour
from fasthebb_cli.settings.config import GpuConfig
from fasthebb_cli.settings.load import with_defaults
from fasthebb_cli.use.images import check_channels, decoded, fit_of, statistics


@dataclass(frozen=True)
class Pass:
    """What to read, and how.

    Args:
        files: in the order of the result.
        batch_size: images that the network sees at once; it changes the result by rounding only.
        workers: processes that decode ahead; 0: this process decodes.
    """

    files: Sequence[ImageFile]
    card: ModelCard
    compute: Compute
    batch_size: int
    workers: int


def open_model(path: Path, settings: Mapping[str, str], view: View) -> tuple[nn.Module, ModelCard]:
    """The model, whose network the code that `trust` names may build; the view says where it did.

    Raises:
        InputError: there is no model, or none that may be built.
    """
    with bad_input():
        network, card = load_model_and_card(path, trust=[settings["trust"]])
        is_colour(f"{path}: background", card.background)
    if card.model == settings["trust"]:
        view.note(f"{card.model} was run to build the network, as trust allows")
    return network, card


def open_pass(files: Sequence[ImageFile], card: ModelCard, settings: Mapping[str, str]) -> Pass:
    """A pass with the settings batch_size, device and workers.

    Raises:
        InputError: a setting is out of range, or the model takes other images than colour images.
    """
    check_channels(card)
    batch_size, workers = whole_number("batch_size", settings, 1, 65536), whole_number("workers", settings, 0, 4096)
    try:
        compute = prepare_compute(with_defaults(GpuConfig, device=settings["device"]))
    except InputError as error:
        raise InputError(str(error).removeprefix("gpu.")) from error  # there is no group gpu here
    return Pass(files, card, compute, batch_size, workers)


def whole_number(name: str, settings: Mapping[str, str], low: int, high: int) -> int:
    try:
        value = int(settings[name])
    except ValueError as error:
        raise InputError(f"{name} must be a whole number, not {settings[name]!r}") from error
    try:
        at_least(name, value, low, high)
    except ValueError as error:
        raise InputError(str(error)) from error
    return value


def out_path(text: str, suffix: str) -> Path:
    """The file that `out` names; the suffix is added where it is missing.

    Raises:
        InputError: it is empty, it is a folder, or its folder is a file.
    """
    if not text:
        raise InputError("out is empty; give the path of a file, or leave it out")
    path = Path(text).expanduser()
    if text.endswith("/") or os.path.isdir(path):  # Path.is_dir raises for a name that is too long
        raise InputError(f"out={text} is a folder; give the path of a file")
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"out={text} is a device or a pipe; give the path of a file")
    if os.path.isfile(path.parent):
        raise InputError(f"out={text}: {path.parent} is a file, not a folder")
    return path if path.name.endswith(suffix) else path.with_name(path.name + suffix)


@torch.inference_mode()
def run_pass(work: Pass, use: Callable[[list[int], Tensor], None], view: View, title: str) -> int:
    """Calls `use(numbers, images)` for each batch: the numbers of its readable files, and their images (n, 3, S, S).

    Returns:
        How many images were read. The view says how long it took.

    Raises:
        InputError: no file can be read.
        RunError: out of memory, or a worker process died.
    """
    device = work.compute.device
    mean, std = (value.to(device) for value in statistics(work.card))
    read = damaged = 0
    began = time.perf_counter()
    stream = decoded(work.files, fit_of(work.card), work.batch_size, work.workers, pin=device.type == "cuda")
    try:
        with FolderProgress(view, title, len(work.files)) as progress:
            for pixels, files, problems in stream:
                for problem in problems:
                    view.warn(f"{problem}; left out")
                if files:
                    prepared = to_float(pixels.to(device, non_blocking=True), mean, std)
                    use(files, work.compute.arrange(prepared))
                read, damaged = read + len(files), damaged + len(problems)
                progress.advance(len(files) + len(problems))
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise RunError("out of memory; lower batch_size") from error
        raise
    if not read:
        raise InputError(f"not one file of {damaged:,} can be read as an image")
    seconds = time.perf_counter() - began
    images, rate = "image" if read == 1 else "images", read / seconds
    view.note(f"{read:,} {images} in {clock(seconds)}, {pace(rate)} images/s ({work.compute.describe()})")
    if damaged:
        view.warn(f"{damaged:,} of {len(work.files):,} files can't be read and were left out")
    return read


@contextmanager
def stoppable(view: View) -> Iterator[None]:
    """Within, a signal raises KeyboardInterrupt, so that temporary files are deleted; elsewhere it ends the process."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in STOP_SIGNALS}
    try:
        yield
    except KeyboardInterrupt:
        view.note("stopped; nothing was written", "yellow")
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
