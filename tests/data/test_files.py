"""The compact list of image files: it holds what a plain list would, in the same order, in a fraction of the memory."""

import os
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from fasthebb_cli.data.files import FileList, ImageFile
from fasthebb_cli.data.walk import list_images
from tests.data.images import save

BYTES = 72  # that an image may take in all indices together


def imagenet_files(count: int) -> Iterator[ImageFile]:
    """Names as long as ImageNet's."""
    for i in range(count):
        wnid = f"n{10_000_000 + i % 1000}"
        name = f"train/{wnid}/{wnid}_{10_000 + i // 1000}.JPEG"
        yield ImageFile(name, f"/data/imagenet/{name}", 110_000 + i, i % 1000)


def test_it_is_the_list_that_it_stands_for() -> None:
    files = [
        ImageFile("b/x.png", "/data/b/x.png", 3, 1),
        ImageFile("a/x.png", "/data/a/x.png", 2**33, 0),
        ImageFile("unlabelled/x.png", "/more/x.png", 0),
        ImageFile("ü\udc80 ö.png", "/data/ü\udc80 ö.png", 5, 7),
        ImageFile("a/y\n.png", "/data/a/y\n.png", 5, 7),
    ]
    compact = FileList(files)
    for kept in (compact, pickle.loads(pickle.dumps(compact))):
        assert list(kept) == files
        assert [kept.paths[i] for i in range(len(kept.paths))] == [file.path for file in files]
        assert kept.labels().tolist() == [1, 0, -1, 7, 7]
    assert compact[-1] == files[-1]
    assert list(compact[1:3]) == files[1:3]
    with pytest.raises(IndexError):
        compact[5]
    assert FileList().labels().tolist() == []


@pytest.mark.slow
def test_an_image_takes_at_most_72_bytes_also_while_it_is_listed() -> None:
    count = 100_000
    tracemalloc.start()
    files = FileList(imagenet_files(count))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(files) == count
    split = 4 + 8  # an index within the data set, and one within its training images
    assert round(held / count) + split <= BYTES
    assert round(peak / count) + split <= BYTES
    files.labels()[3] = 77
    assert files[3].label == 77, "labels are a copy, of 8 more bytes an image"


def test_files_are_in_the_order_of_their_whole_names(tmp_path: Path) -> None:
    names = ["a.png", "a/b.png", "a-b/c.png", "a/b/c.png", "a/b-c.png", "B.png", "a b/c.png", "aa/é.png", "aa/z.png"]
    for i, name in enumerate(names):
        save(tmp_path / name, i)
    assert [file.name for file in list_images(tmp_path)] == sorted(names)


WHOLE = """
import os, sys
import torch
from fasthebb_cli.settings.config import DatasetConfig
from fasthebb_cli.settings.load import with_defaults
from fasthebb_cli.data import walk
from fasthebb_cli.data.files import ImageFile
from fasthebb_cli.data.imagenet import imagenet
from fasthebb_cli.data.loading import batches
from fasthebb_cli.data.splits import stratified_order

class Nothing:
    channels = size = 1
    def read(self, indices):
        return torch.zeros(len(indices), 1, 1, 1, dtype=torch.uint8)

def peak():  # not ru_maxrss, which begins with that of the process that started this one
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])

def list_images(folder, *_):  # 1,280 of each class, and names as long as ImageNet's
    wnid = folder.name
    for i in range(1_230 if folder.parent.name == "train" else 50):
        name = f"{wnid}_{10_000 + i}.JPEG"
        yield ImageFile(name, f"{folder}/{name}", 110_000 + i)

count = 1_280_000
walk.list_images = list_images
list(batches(Nothing(), torch.arange(10), batch_size=4, device=torch.device("cpu"), order_seed=0))
stratified_order(torch.arange(10), 0)
before = peak()
collection = imagenet(with_defaults(DatasetConfig, name="imagenet", root=sys.argv[1], size=210))
listed_peak = peak()
assert len(collection.source) == count
train = stratified_order(collection.labels, 0).sort().values
stream = batches(Nothing(), train, batch_size=256, device=torch.device("cpu"), order_seed=1)
seen = torch.zeros(count, dtype=torch.uint8)
for _, chosen in stream:
    seen[chosen] += 1
assert bool((seen == 1).all())
print((listed_peak - before) / count, (peak() - before) / count)
"""


@pytest.mark.marathon
def test_a_whole_imagenet_is_listed_split_and_shuffled_in_bounded_memory(tmp_path: Path) -> None:
    """The process's peak memory in bytes an image: after listing, and after the split, two orders and the batches."""
    for k in range(1000):
        for part in ("train", "val"):
            folder = tmp_path / part / f"n{10_000_000 + k}"
            folder.mkdir(parents=True)
    (folder.parents[1] / "train" / folder.name / "0.JPEG").touch()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", WHOLE, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=250,
    )
    listing, everything = map(float, ran.stdout.split())
    assert listing <= 105, "the list, and while contents are read, digests, keys and numbers of files"
    assert everything <= 160
