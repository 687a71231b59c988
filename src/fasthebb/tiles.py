"""Tile sizes: small for a CPU, so that tiles fit its caches, and large for a GPU, where each kernel launch costs time.

The results do not depend on them, except for rounding.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TileSizes:
    """Tile sizes of engine.py and products.py.

    Args:
        chunk: most numbers in one tensor of a convolution's responses, or of the patches' rests in the blocked form.
        pairs: number of rows of the K x K matrix of all pairs of units that are computed at a time.
        parts: most parts into which the patches are divided for a batch of products.
        block: number of units in a block, in the blocked form.
        tile: fewest inputs in a tile, in the blocked form; None: no tiles, and all blocks in one batch.
    """

    chunk: int
    pairs: int
    parts: int
    block: int
    tile: int | None


# a few cores with one cache: the library divides a batch of small products between them, but hardly a single product
CPU = TileSizes(chunk=5 << 18, pairs=48, parts=8, block=32, tile=256)
# thousands of cores: each product is divided between them, and small products cost little but their launch
GPU = TileSizes(chunk=1 << 25, pairs=128, parts=1, block=128, tile=None)


def sizes_for(tensor: Tensor) -> TileSizes:
    """The tile sizes for the tensor's device; of the accelerators, only CUDA has been tried."""
    return CPU if tensor.device.type == "cpu" else GPU
