"""How large the pieces are that work is cut into: small for the caches of a processor, large for a GPU, which waits for
every piece to be asked for. No number depends on it, but for rounding.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Grain:
    """Sizes of pieces.

    Args:
        chunk: numbers that a tensor of a convolution's responses has at most.
        pairs: units at a time of the matrix of all pairs.
        parts: of the patches, at most and if they divide, whose products are a batch.
        block: units a block in the blocked form.
        tile: inputs a tile in the blocked form, at least; None: all blocks at once, and no tiles.
    """

    chunk: int
    pairs: int
    parts: int
    block: int
    tile: int | None


# few cores that share a cache: the library shares out a batch of small products between them, but hardly a single one
PROCESSOR = Grain(chunk=5 << 18, pairs=48, parts=8, block=32, tile=256)
# thousands of them: a product is shared out by itself, and what small ones cost is to be asked for
GPU = Grain(chunk=1 << 25, pairs=4096, parts=1, block=256, tile=None)


def of(tensor: Tensor) -> Grain:
    """What suits the device that the tensor is on."""
    return PROCESSOR if tensor.device.type == "cpu" else GPU
