"""Every image of a data set read and decoded once: which are damaged, which are unusual, and what is to be packed."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from fasthebb_cli.data.folders import SUFFIXES
from fasthebb_cli.data.source import ImageFiles, ImageSource, decode_all

ORIENTATION = 0x0112  # EXIF tag
GREY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I;16L")


Traits = dict[str, tuple[int, str]]  # what is unusual about images -> of how many that is so, and the path of the first


class Checked(NamedTuple):
    """A stretch of images.

    Args:
        content: uint8 (n, C, S, S), or (bytes,) of the files one after the other, of those n that can be decoded.
        lengths: bytes of each of them.
        damaged: number and error of each that can't be.
        traits: see `Traits`.
        images: how many were looked at.
    """

    content: Tensor
    lengths: list[int]
    damaged: dict[int, str]
    traits: Traits
    images: int


class Checker:
    """Checks stretches of a source; see `data.loading.Readable`.

    Args:
        encoded: content is that of the files.
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
        pixels = decode_all(paths, source.size, read, found)
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
    """What about an image that can be decoded is worth to be counted."""
    found = []
    with Image.open(io.BytesIO(content)) as image:
        if image.mode in GREY_MODES:
            found.append("grey")
        elif image.mode == "CMYK":
            found.append("CMYK")
        if image.getexif().get(ORIENTATION, 1) != 1:
            found.append("turned by EXIF")
        named = Image.registered_extensions().get(os.path.splitext(path)[1].lower())
        if image.format != named and (image.format, named) != ("MPO", "JPEG"):  # several JPEGs in one file
            found.append("of another format than named")
    return found


def misnamed(top: Path) -> Iterator[str]:
    """Paths of images below a folder that no data set would find, since their names don't end as an image's do."""
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
