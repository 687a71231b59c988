"""Where pixels come from: a tensor in memory, or image files that are decoded when they are read.

A decoded image is uint8 RGB, S x S: rotated as its EXIF tag says, resized (bilinear, antialiased) and made square as
its `Fit` says. Knows nothing of labels, splits or settings.
"""

import io
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps, features
from torch import Tensor

from fasthebb_cli.data.files import Listing
from fasthebb_cli.errors import InputError

MEMORY_LIMIT = 4 * 2**30  # bytes: a data set with fewer pixels is kept in memory, unless dataset.in_memory is set
CHUNK = 16  # images that a decoding thread takes at a time

# Pillow warns of images above 89 megapixels. Above twice that it raises an error, which we report
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Pillow could open many more, some by running other programs
FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM"]


def more_suffixes() -> tuple[str, ...]:
    """Endings of the formats that this installation reads besides those that Pillow always does, which are opened now.

    AVIF: recent versions of Pillow; HEIC: the package pillow-heif.
    """
    found: tuple[str, ...] = ()
    if features.check("avif"):
        found += (".avif",)
        FORMATS.append("AVIF")
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return found
    register_heif_opener()
    FORMATS.append("HEIF")
    return (*found, ".heic", ".heif")


class Fit(NamedTuple):
    """How an image becomes a square.

    Args:
        size: S, its side.
        how: "crop": the shorter side becomes S, and the middle is cut out; "pad": the longer side becomes S, and the
            rest is background; "stretch": both sides become S.
        background: behind transparent parts, and beside a padded image; a name or #rrggbb.
    """

    size: int
    how: str = "crop"
    background: str = "white"

    @property
    def colour(self) -> tuple[int, ...]:
        """(red, green, blue) of the background."""
        return ImageColor.getrgb(self.background)[:3]

    @property
    def is_usual(self) -> bool:
        return self.how == "crop" and self.colour == ImageColor.getrgb("white")

    def text(self) -> str:
        """For digests: the same for fits that give the same pixels, and the size alone for the usual one."""
        return str(self.size) if self.is_usual else f"{self.size} {self.how} {self.colour}"


class ImageSource(Protocol):
    """All images of a data set, numbered from 0: training, validation, test and unlabelled ones."""

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
    """Image files, decoded by as many threads as torch uses (in a DataLoader's worker: one).

    Args:
        read_bytes: path -> content of the file, which may be inside an archive.
        check: is called with the number of each file that was read, and raises RunError if it was changed;
            None: nobody can change them.
    """

    channels = 3

    def __init__(
        self,
        paths: Listing[str],
        fit: Fit,
        read_bytes: Callable[[str], bytes] = read_bytes,
        check: Callable[[int], None] | None = None,
    ) -> None:
        self.paths, self.fit, self.read_bytes, self.check = paths, fit, read_bytes, check
        self.size = fit.size

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: Tensor) -> Tensor:
        """uint8 (B, 3, S, S).

        Raises:
            InputError: a file is missing or is not an image; names its path.
            RunError: a file was changed since it was listed.
        """
        chosen = indices.tolist()
        pixels = decode_all([self.paths[i] for i in chosen], self.fit, self.read_bytes)
        if self.check is not None:
            for i in chosen:
                self.check(i)
        return pixels


class DecodedFiles(InMemory):
    """Image files in memory, decoded when a split first needs them: a part of a large folder is read alone.

    Args:
        files: where they are read from.
    """

    def __init__(self, files: ImageFiles) -> None:
        # memory of images that no split needs is never touched, so the system does not provide it
        super().__init__(torch.empty(len(files), files.channels, files.size, files.size, dtype=torch.uint8))
        self.files, self.is_decoded = files, torch.zeros(len(files), dtype=torch.bool)

    def fill(self, indices: Tensor) -> None:
        """Decodes images (B,) that are not decoded yet.

        Raises:
            InputError, RunError: as `ImageFiles.read`.
        """
        missing = indices[~self.is_decoded[indices]].unique()
        for part in missing.split(64 * CHUNK):
            self.pixels[part] = self.files.read(part)
            self.is_decoded[part] = True


def decode_all(
    paths: Listing[str],
    fit: Fit,
    read: Callable[[str], bytes] = read_bytes,
    damaged: dict[int, str] | None = None,
) -> Tensor:
    """Images as uint8 (N, 3, S, S) in the order of the paths.

    Args:
        read: path -> content of the file.
        damaged: gets the number and the error of each image that can't be decoded, whose pixels are undefined;
            None: the error is raised.

    Raises:
        InputError: as `decode`, for the first image that can't be decoded.
    """
    pixels = torch.empty(len(paths), 3, fit.size, fit.size, dtype=torch.uint8)
    array = pixels.numpy()

    def fill(start: int) -> None:
        for i in range(start, min(start + CHUNK, len(paths))):
            try:
                array[i] = decode(paths[i], fit, read)
            except InputError as error:
                if damaged is None:
                    raise
                damaged[i] = str(error)

    starts = range(0, len(paths), CHUNK)
    threads = min(8, torch.get_num_threads(), len(starts))
    if threads <= 1:
        for start in starts:
            fill(start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(fill, starts):
                pass
    return pixels


def find_damaged(source: ImageFiles) -> dict[int, str]:
    """Decodes every image once. Returns number -> error for those that can't be decoded."""
    damaged: dict[int, str] = {}
    for chunk in torch.split(torch.arange(len(source)), 64 * CHUNK):
        found: dict[int, str] = {}
        decode_all([source.paths[i] for i in chunk.tolist()], source.fit, source.read_bytes, found)
        damaged |= {int(chunk[i]): problem for i, problem in found.items()}
    return damaged


def decode(
    path: str, fit: Fit, read: Callable[[str], bytes] = read_bytes
) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """One image as uint8 (3, S, S).

    Raises:
        InputError: the file is missing, truncated or not an image; one line with the path.
    """
    try:
        with Image.open(io.BytesIO(read(path)), formats=FORMATS) as image:
            image.draft(None, (2 * fit.size, 2 * fit.size))  # large JPEG: decode at a fraction of its size
            ImageOps.exif_transpose(image, in_place=True)
            fitted = _square(_to_rgb(image, fit.colour), fit)
    except Exception as error:  # whatever Pillow raises of a broken file, as TypeError of a broken EXIF
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = " ".join(said.split()).split(" <_io")[0]
        raise InputError(f"{path}: can't be read as an image: {reason or type(error).__name__}") from error
    return np.asarray(fitted).transpose(2, 0, 1)


def _square(image: Image.Image, fit: Fit) -> Image.Image:
    square = (fit.size, fit.size)
    if fit.how == "pad":
        if max(image.size) >= 2 * fit.size * min(image.size):  # its shorter side would be 0 pixels long
            thin = tuple(max(1, round(fit.size * side / max(image.size))) for side in image.size)
            image = image.resize((thin[0], thin[1]), Image.Resampling.BILINEAR)
        return ImageOps.pad(image, square, Image.Resampling.BILINEAR, color=fit.colour)
    if fit.how == "stretch":
        return image.resize(square, Image.Resampling.BILINEAR)
    return ImageOps.fit(image, square, Image.Resampling.BILINEAR)


def _to_rgb(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    """Three channels of 8 bits. What is transparent shows the background. 16-bit greys are scaled; Pillow would clip
    them to white.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # which has 16 bits at most
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits; store it with 8 or 16 bits a channel")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")
