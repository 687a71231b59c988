"""Batches of a source, in order or shuffled by a seed, from any batch on. An epoch depends on nothing else."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Generic, Protocol, TypeVar

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
    """Gives what lies at int64 indices (B,); an ImageSource gives images."""

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
    """Pairs of uint8 images (B, C, S, S) on the device and their indices (B,); the last pair may be
    shorter, or longer by one (see `batch_lengths`).

    Args:
        indices: int64 (N,) of the images to read.
        order_seed: of their permutation; None: as given.
        start: batches to skip, of which nothing is decoded.
        workers: processes that read ahead, if the source is files or packed.
        part_of: which images of a batch of so many to read; all of them unless given. There may be none.

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
    """Images in each batch of an epoch; a single one that is left over joins the batch before it: batch norm needs
    two.
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
    """Reads whole batches in a worker. Errors come back as values: DataLoader would wrap them in a traceback."""

    def __init__(self, source: Readable[T_co]) -> None:
        self.source = source

    def __getitem__(self, chunk: list[int]) -> T_co | InputError | RunError:
        try:
            return self.source.read(torch.tensor(chunk, dtype=torch.int64))
        except (InputError, RunError) as error:
            return type(error)(str(error))


def _end_with_its_starter(_: int) -> None:
    """However that one ends. A worker waits for work otherwise, and the fork server for its last worker."""
    starter = multiprocessing.parent_process()
    assert starter is not None

    def end() -> None:
        starter.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def read_ahead(source: Readable[T_co], chunks: list[Tensor], workers: int, *, pin: bool) -> Iterator[T_co]:
    """What `source` reads for each chunk, in order, by worker processes, at least one.

    Forking a process with threads may dead-lock, so workers come from a fork server.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":  # it imports what this process has of ours once; workers would, in every epoch: seconds
        context.set_forkserver_preload([name for name in sys.modules if name.startswith("fasthebb_cli")])
    loader = DataLoader(
        _Chunks(source),
        sampler=map(Tensor.tolist, chunks),  # one at a time: numbers of all would be 40 bytes an image
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=context,
        pin_memory=pin,
        worker_init_fn=_end_with_its_starter,
        generator=torch.Generator(),  # its own, else it would draw from the one that the network uses
    )
    with stops_held():  # SLURM signals every process of a job
        resource_tracker.ensure_running()  # after which some come through again
    with stops_held():
        stream = iter(loader)
    try:
        for content in stream:
            if isinstance(content, (InputError, RunError)):
                raise content
            yield content
    except RuntimeError as error:  # such as a process killed for want of memory
        reason = " ".join(str(error).split())
        raise RunError(f"a decoding process failed; lower workers or batch_size ({reason})") from error
