"""How large the pieces are that work is cut into: small for the caches of a processor, large for a GPU, which waits for
every piece to be asked for. No number depends on it, but for rounding.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TileSizes:
    """Sizes of pieces.

    Args:
        chunk: numbers in a tensor of a convolution's responses, or of what blocks leave of the patches, at most.
        pairs: units at a time of the matrix of all pairs.
        parts: into which patches are divided, at most, for a batch of products.
        block: units a block in the blocked form.
        tile: inputs a tile in the blocked form, at least; None: all blocks at once, and no tiles.
    """

    chunk: int
    pairs: int
    parts: int
    block: int
    tile: int | None


# few cores that share a cache: the library shares out a batch of small products between them, but hardly a single one
PROCESSOR = TileSizes(chunk=5 << 18, pairs=48, parts=8, block=32, tile=256)
# thousands of them: a product is shared out by itself, and what small ones cost is to be asked for
GPU = TileSizes(chunk=1 << 25, pairs=4096, parts=1, block=256, tile=None)


def sizes_for(tensor: Tensor) -> TileSizes:
    """What suits the tensor's device; of accelerators only CUDA's has been tried."""
    return PROCESSOR if tensor.device.type == "cpu" else GPU
