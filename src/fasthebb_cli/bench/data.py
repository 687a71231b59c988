"""The pace of the loader: images per second, read, decoded and put on the device as bytes."""

import time

from fasthebb_cli.compute.device import Compute
from fasthebb_cli.data.dataset import Dataset
from fasthebb_cli.data.loading import batches as load


def loading_pace(dataset: Dataset, batch_size: int, compute: Compute, *, workers: int, batches: int) -> float:
    """Images per second over the given number of batches, shuffled, after as many as start-up and what is decoded
    ahead may hide; the set is passed through again and again where it is small.
    """
    lead = 1 + 2 * workers  # each process is two batches ahead
    indices = dataset.train.repeat(-(-(batches + lead) * batch_size // len(dataset.train)))
    stream = load(dataset.source, indices, batch_size=batch_size, device=compute.device, order_seed=0, workers=workers)
    images = 0
    began = time.perf_counter()
    for step, (pixels, _) in enumerate(stream, 1):
        images += len(pixels)
        if step == lead:
            began, images = time.perf_counter(), 0
        if step == lead + batches:
            break
    return images / (time.perf_counter() - began)
