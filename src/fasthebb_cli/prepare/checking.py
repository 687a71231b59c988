"""Reads and decodes every image of a data set once: which are damaged, which are unusual, and what to pack."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fasthebb_cli.data.source import ImageFiles, ImageSource, decode_all
from fasthebb_cli.data.walk import SUFFIXES

ORIENTATION = 0x0112  # EXIF tag
TURNED = range(2, 9)  # its values but for upright
GREY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I;16L")
LONG = 2.0  # times as long as wide: cropping leaves out half of such an image, or more
DEEP_MODES = ("I;16", "I;16B", "I;16L")
DARK = 1 << 12  # values of 12 bits


Traits = dict[str, tuple[int, str]]  # an unusual trait -> how many images have it, and the path of the first


class Checked(NamedTuple):
    """The result for a stretch of images, n of which can be decoded.

    Args:
        content: uint8, the pixels (n, C, S, S), or the files' bytes one after the other (bytes,).
        lengths: the number of bytes of each of the n images.
        damaged: the number and the error of each image that can't be decoded.
        traits: the unusual traits of the n images.
        images: how many images were read, damaged ones included.
    """

    content: Tensor
    lengths: list[int]
    damaged: dict[int, str]
    traits: Traits
    images: int


class Checker:
    """Checks stretches of a source; a `data.loading.Readable`.

    Args:
        encoded: `Checked.content` holds the files' bytes, not pixels.
    """

    def __init__(self, source: ImageSource, *, encoded: bool) -> None:
        self.source, self.encoded = source, encoded

    def read(self, indices: Tensor) -> Checked:
        if not isinstance(self.source, ImageFiles):
            pixels = self.source.read(indices)
            return Checked(pixels, [pixels[0].numel()] * len(pixels), {}, {}, len(pixels))
        source, numbers = self.source, indices.tolist()
        paths = [source.paths[i] for i in numbers]
        contents: dict[str, bytes] = {}

        def read(path: str) -> bytes:
            contents[path] = source.read_bytes(path)
            return contents[path]

        found: dict[int, str] = {}
        pixels = decode_all(paths, source.fit, read, found)
        kept = [k for k in range(len(paths)) if k not in found]
        traits: Traits = {}
        for k in kept:
            add_traits(traits, dict.fromkeys(unusual(paths[k], contents[paths[k]]), (1, paths[k])))
        damaged = {numbers[k]: problem for k, problem in sorted(found.items())}
        if not self.encoded:
            return Checked(pixels[kept], [pixels[0].numel()] * len(kept), damaged, traits, len(paths))
        files = [contents[paths[k]] for k in kept]
        content = torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8) if files else torch.empty(0).byte()
        return Checked(content, list(map(len, files)), damaged, traits, len(paths))


def add_traits(traits: Traits, more: Traits) -> None:
    for trait, (count, first) in more.items():
        before = traits.get(trait, (0, first))
        traits[trait] = (before[0] + count, before[1])


def unusual(path: str, content: bytes) -> list[str]:
    """The unusual traits of an image that can be decoded."""
    found = []
    with Image.open(io.BytesIO(content)) as image:
        if image.mode in GREY_MODES:
            found.append("grey, read as RGB")
        elif image.mode == "CMYK":
            found.append("CMYK, read as RGB")
        if image.mode in DEEP_MODES and np.asarray(image).max() < DARK:
            found.append("of 12 bits in 16, which come out nearly black")
        if getattr(image, "is_animated", False) and image.format != "MPO":
            found.append("of several frames, of which the first is read")
        if max(image.size) >= LONG * min(image.size):
            found.append("twice as long as wide or more; dataset.fit says what is seen of them")
        if image.has_transparency_data and np.asarray(image.convert("RGBA"))[:, :, 3].min() < 255:
            found.append("transparent in parts, before dataset.background")
        if image.getexif().get(ORIENTATION, 1) in TURNED:
            found.append("turned by EXIF, read upright")
        named = Image.registered_extensions().get(os.path.splitext(path)[1].lower())
        if image.format != named and (image.format, named) != ("MPO", "JPEG"):  # several JPEGs in one file
            found.append("of another format than named, read as what they are")
    return found


def misnamed(top: Path) -> Iterator[str]:
    """Paths of images below a folder that no data set finds, since their names have no ending of an image file."""
    for folder, folders, names in os.walk(top, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(folder, name)
            if name.startswith(".") or name.lower().endswith(SUFFIXES) or not os.path.isfile(path):
                continue
            try:
                with Image.open(path):
                    yield path
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
                continue
