"""Batches: their order, resuming in the middle of an epoch, and worker processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fasthebb_cli.data.loading import batches, step_count
from fasthebb_cli.data.packed import PackedPixels
from fasthebb_cli.data.source import Fit, ImageFiles, ImageSource, InMemory
from fasthebb_cli.errors import InputError, RunError
from tests.data.images import save

CPU = torch.device("cpu")


class Counting:
    """Image k is filled with k. Keeps a list of the images that were read."""

    channels, size = 1, 2

    def __init__(self, count: int) -> None:
        self.count, self.seen = count, list[int]()

    def __len__(self) -> int:
        return self.count

    def read(self, indices: torch.Tensor) -> torch.Tensor:
        self.seen += indices.tolist()
        return indices.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def epoch(source: ImageSource, count: int = 10, seed: int | None = None, start: int = 0) -> list[list[int]]:
    stream = batches(source, torch.arange(count), batch_size=4, device=CPU, order_seed=seed, start=start)
    pairs = list(stream)
    for images, chosen in pairs:
        assert images.dtype == torch.uint8
        assert torch.equal(images[:, 0, 0, 0].long(), chosen)
    return [chosen.tolist() for _, chosen in pairs]


def test_without_a_seed_the_order_is_kept_and_the_last_batch_is_short() -> None:
    assert epoch(Counting(10)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_the_order_depends_on_the_seed_alone() -> None:
    first = epoch(Counting(10), seed=1)
    torch.manual_seed(5)
    assert epoch(Counting(10), seed=1) == first
    assert epoch(Counting(10), seed=2) != first
    assert sorted(k for chunk in first for k in chunk) == list(range(10))


def test_a_resumed_epoch_continues_and_reads_nothing_of_what_it_skips() -> None:
    source = Counting(10)
    assert epoch(source, seed=1, start=2) == epoch(Counting(10), seed=1)[2:]
    assert len(source.seen) == 2
    assert epoch(Counting(10), start=3) == []


def test_no_indices_no_batches() -> None:
    assert epoch(Counting(10), count=0) == []


def test_an_image_left_over_joins_the_batch_before_it() -> None:
    """Batch norm needs two images."""
    for start, sizes in ((0, [3, 3, 4]), (2, [4]), (3, [])):
        assert [len(chosen) for _, chosen in epoch_pairs(10, 3, start)] == sizes
    assert [step_count(n, 3) for n in (1, 2, 3, 4, 5, 9, 10, 11)] == [1, 1, 1, 1, 2, 3, 3, 4]
    assert [len(chosen) for _, chosen in epoch_pairs(1, 3, 0)] == [1]


def epoch_pairs(count: int, batch_size: int, start: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    source = InMemory(torch.zeros(count, 3, 2, 2, dtype=torch.uint8))
    return list(batches(source, torch.arange(count), batch_size=batch_size, device=CPU, order_seed=0, start=start))


def test_memory_is_indexed() -> None:
    source = InMemory(torch.arange(10, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2))
    assert epoch(source, seed=3) == epoch(Counting(10), seed=3)


@pytest.mark.slow
def test_workers_read_the_same_and_errors_reach_the_caller(tmp_path: Path) -> None:
    source = ImageFiles([str(save(tmp_path / f"{i}.png", i)) for i in range(11)], Fit(8))

    def pairs(workers: int, start: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
        stream = batches(source, torch.arange(11), batch_size=3, device=CPU, order_seed=1, start=start, workers=workers)
        return list(stream)

    state = torch.get_rng_state()
    with_workers, without = pairs(2), pairs(0)
    assert torch.equal(torch.get_rng_state(), state), "the network's draws would depend on gpu.workers"
    assert len(with_workers) == len(without) == 4
    for (images, chosen), (expected, expected_chosen) in zip(with_workers, without, strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(chosen, expected_chosen)
    Path(source.paths[7]).write_bytes(b"no image")
    with pytest.raises(InputError) as here:
        pairs(0)
    with pytest.raises(InputError) as there:
        pairs(2)
    assert (
        str(there.value)
        == str(here.value)
        == f"{source.paths[7]}: can't be read as an image: cannot identify image file"
    )


class Dying(ImageFiles):
    def read(self, indices: torch.Tensor) -> torch.Tensor:
        os._exit(1)


BAD_IMAGE = """
import torch
from fasthebb_cli.data.loading import batches
from fasthebb_cli.data.source import Fit, ImageFiles
from fasthebb_cli.errors import InputError

source = ImageFiles(["gone.png"] * 8, Fit(8))
try:
    list(batches(source, torch.arange(8), batch_size=2, device=torch.device("cpu"), order_seed=None, workers=2))
except InputError as error:
    kept = error
    print(error)
"""


@pytest.mark.slow
def test_a_process_ends_after_an_error_in_a_worker() -> None:
    ended = subprocess.run([sys.executable, "-c", BAD_IMAGE], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout.count("gone.png: can't be read")) == (0, 1), ended.stderr


@pytest.mark.slow  # torch checks for dead workers every five seconds
def test_a_worker_that_dies_is_one_line() -> None:
    stream = batches(Dying(["x"], Fit(8)), torch.arange(1), batch_size=1, device=CPU, order_seed=None, workers=1)
    with pytest.raises(RunError, match=r"a decoding process failed; lower workers .*exited unexpectedly"):
        next(stream)


@pytest.mark.slow
def test_workers_take_a_part_without_images(tmp_path: Path) -> None:
    """A process has an empty part of a batch that is smaller than the number of processes."""
    (tmp_path / "images.bin").write_bytes(bytes(range(36)))
    source = PackedPixels(tmp_path / "images.bin", 3, 2)
    stream = batches(
        source, torch.arange(3), batch_size=3, device=CPU, order_seed=None, workers=1, part_of=lambda _: slice(3, None)
    )
    assert [images.shape for images, _ in stream] == [(0, 3, 2, 2)]
