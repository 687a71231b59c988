"""Batches of images, in order or shuffled by a seed, from any batch on. An epoch depends on nothing else."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fasthebb_cli.compute.signals import stops_held
from fasthebb_cli.data.packed import PackedPixels
from fasthebb_cli.data.source import ImageFiles, ImageSource
from fasthebb_cli.errors import InputError, RunError

T_co = TypeVar("T_co", covariant=True)


class Readable(Protocol[T_co]):
    """Reads items by their int64 indices (B,); of an ImageSource they are images."""

    def read(self, indices: Tensor) -> T_co: ...


def batches(
    source: ImageSource,
    indices: Tensor,
    *,
    batch_size: int,
    device: torch.device,
    order_seed: int | None,
    start: int = 0,
    workers: int = 0,
    part_of: Callable[[int], slice] = slice,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of uint8 images (B, C, S, S) on the device and their indices (B,). The last batch may have fewer images, or
    one more (see `batch_lengths`).

    Args:
        indices: int64 (N,) of the images to read.
        order_seed: seed of their permutation; None: they keep their order.
        start: batches to skip; their images are not decoded.
        workers: processes that read ahead, if the images are files or packed.
        part_of: length of a batch -> the part of it to read, which may be empty; by default all of it.

    Raises:
        InputError: a file can't be read.
        RunError: a worker process died.
    """
    if order_seed is not None:
        generator = torch.Generator().manual_seed(order_seed)
        indices = indices[torch.randperm(len(indices), generator=generator)]
    chunks = [
        chunk[part_of(len(chunk))] for chunk in torch.split(indices, batch_lengths(len(indices), batch_size))[start:]
    ]
    if workers > 0 and chunks and isinstance(source, ImageFiles | PackedPixels):
        stream = read_ahead(source, chunks, min(workers, len(chunks)), pin=device.type == "cuda")
    else:
        stream = map(source.read, chunks)
    for images, chunk in zip(stream, chunks, strict=True):
        yield images.to(device, non_blocking=True), chunk


def batch_lengths(samples: int, batch_size: int) -> list[int]:
    """Images in each batch of an epoch. If a single image is left over, it joins the batch before it, as batch norm
    needs two.
    """
    whole, rest = divmod(samples, batch_size)
    lengths = [batch_size] * whole
    if rest == 1 and whole:
        lengths[-1] += 1
    elif rest:
        lengths.append(rest)
    return lengths


def step_count(samples: int, batch_size: int) -> int:
    """Batches in an epoch."""
    left_over = samples % batch_size == 1 and samples > batch_size
    return -(-samples // batch_size) - left_over


class _Chunks(TorchDataset[T_co | InputError | RunError], Generic[T_co]):
    """Reads whole batches in a worker. It returns errors as values, as DataLoader would wrap them in a traceback."""

    def __init__(self, source: Readable[T_co]) -> None:
        self.source = source

    def __getitem__(self, chunk: list[int]) -> T_co | InputError | RunError:
        try:
            return self.source.read(torch.tensor(chunk, dtype=torch.int64))
        except (InputError, RunError) as error:
            return type(error)(str(error))


def _end_with_parent(_: int) -> None:
    """Ends this worker when its parent ends, even if that is killed. Otherwise the worker would wait for work for ever,
    and the fork server for the worker.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def read_ahead(source: Readable[T_co], chunks: list[Tensor], workers: int, *, pin: bool) -> Iterator[T_co]:
    """Reads the chunks by `workers` processes, at least one, and yields their content in order.

    Workers come from a fork server, as forking a process that has threads may dead-lock.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":  # it imports our modules once; otherwise each worker does, in every epoch: seconds
        context.set_forkserver_preload([name for name in sys.modules if name.startswith("fasthebb_cli")])
    loader = DataLoader(
        _Chunks(source),
        sampler=map(Tensor.tolist, chunks),  # one at a time: the indices of all would take 40 bytes an image
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=context,
        pin_memory=pin,
        worker_init_fn=_end_with_parent,
        generator=torch.Generator(),  # otherwise it draws from torch's own, whose draws the network needs
    )
    with stops_held():  # SLURM sends signals to every process of a job
        resource_tracker.ensure_running()  # it lets some signals through again, so hold them once more
    with stops_held():
        stream: Any = iter(loader)
    try:
        for content in stream:
            if isinstance(content, (InputError, RunError)):
                raise content
            yield content
    except (RuntimeError, OSError, EOFError) as error:  # such as a worker that was killed as memory ran out
        reason = " ".join(str(error).split())
        raise RunError(f"a decoding process failed; lower workers or batch_size ({reason})") from error
    finally:  # an error's traceback keeps the stream alive, and Python would wait for its workers when it exits
        stream._shutdown_workers()
