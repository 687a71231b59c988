"""Where pixels come from: a tensor in memory, or image files that are decoded when they are read.

Every image leaves here as uint8 RGB (or the tensor's channels), S x S: turned as its EXIF tag says, its shorter side
resized to S (bilinear, antialiased), its centre cut out. Knows nothing of labels, splits or settings.
"""

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fasthebb_cli.data.files import Listing
from fasthebb_cli.errors import InputError

MEMORY_LIMIT = 4 * 2**30  # bytes of pixels up to which a data set is kept in memory unless told otherwise
PART = 16  # images that a decoding thread takes at a time

# Pillow prints it beyond 89 megapixels; beyond twice as many it is an error, and stays one
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_UNREADABLE = (
    OSError,  # includes Pillow's "cannot identify image file"
    SyntaxError,  # Pillow's broken PNG
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)


class ImageSource(Protocol):
    """All images of a data set under one numbering: training, validation, test and unlabelled ones."""

    channels: int
    size: int

    def __len__(self) -> int: ...

    def read(self, indices: Tensor) -> Tensor:
        """Images of int64 indices (B,) as uint8 (B, C, S, S)."""
        ...


class InMemory:
    """Decoded images, uint8 (N, C, S, S), on any device."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self.channels, self.size = pixels.shape[1], pixels.shape[2]

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, indices: Tensor) -> Tensor:
        return self.pixels[indices.to(self.pixels.device)]

    def to(self, device: torch.device) -> "InMemory":
        return InMemory(self.pixels.to(device))


def read_bytes(path: str) -> bytes:
    return Path(path).read_bytes()


class ImageFiles:
    """Image files, decoded by as many threads as torch may use (one in a DataLoader's worker).

    Args:
        read_bytes: gives the content of a path, where it is in no file of its own.
    """

    channels = 3

    def __init__(self, paths: Listing[str], size: int, read_bytes: Callable[[str], bytes] = read_bytes) -> None:
        self.paths, self.size, self.read_bytes = paths, size, read_bytes

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: Tensor) -> Tensor:
        """uint8 (B, 3, S, S).

        Raises:
            InputError: a file is missing or no image; names its path.
        """
        return decode_all([self.paths[i] for i in indices.tolist()], self.size, self.read_bytes)


def decode_all(
    paths: Listing[str],
    size: int,
    read: Callable[[str], bytes] = read_bytes,
    damaged: dict[int, str] | None = None,
) -> Tensor:
    """Images as uint8 (N, 3, S, S) in the order of the paths; `read` gives a path's bytes.

    Args:
        damaged: takes the number and the error of each that can't be read, whose pixels mean nothing; None: raise it.

    Raises:
        InputError: as `decode`, for the first of the paths that can't be read.
    """
    pixels = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    array = pixels.numpy()

    def fill(start: int) -> None:
        for i in range(start, min(start + PART, len(paths))):
            try:
                array[i] = decode(paths[i], size, read)
            except InputError as error:
                if damaged is None:
                    raise
                damaged[i] = str(error)

    parts = range(0, len(paths), PART)
    threads = min(8, torch.get_num_threads(), len(parts))
    if threads <= 1:
        for start in parts:
            fill(start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(fill, parts):
                pass
    return pixels


def find_damaged(source: ImageFiles) -> dict[int, str]:
    """Decodes every image once: number and error of each that can't be."""
    damaged: dict[int, str] = {}
    for chunk in torch.split(torch.arange(len(source)), 64 * PART):
        found: dict[int, str] = {}
        decode_all([source.paths[i] for i in chunk.tolist()], source.size, source.read_bytes, found)
        damaged |= {int(chunk[i]): problem for i, problem in found.items()}
    return damaged


def decode(
    path: str, size: int, read: Callable[[str], bytes] = read_bytes
) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """One image as uint8 (3, S, S).

    Raises:
        InputError: the file is missing, truncated or no image; one line with the path.
    """
    try:
        with Image.open(io.BytesIO(read(path))) as image:
            image.draft(None, (2 * size, 2 * size))  # large JPEG: decode at a fraction of its size
            ImageOps.exif_transpose(image, in_place=True)
            fitted = ImageOps.fit(_to_rgb(image), (size, size), Image.Resampling.BILINEAR)
    except _UNREADABLE as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = " ".join(said.split()).split(" <_io")[0]
        raise InputError(f"{path}: can't be read as an image: {reason or type(error).__name__}") from error
    return np.asarray(fitted).transpose(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits; transparency is dropped, 16-bit greys are scaled (Pillow would clip them to white)."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits; store it with 8 or 16 bits a channel")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
