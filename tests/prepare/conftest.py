"""Fixtures for the tests of `fasthebb data`."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from fasthebb_cli import cli
from fasthebb_cli.data.collection import Collection, from_arrays
from fasthebb_cli.data.dataset import _collection
from fasthebb_cli.settings.config import DatasetConfig

Data = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(capsys: pytest.CaptureFixture[str]) -> Iterator[Data]:
    """`data("prepare", "out=there")` runs `fasthebb data` and returns exit code, output and errors."""

    def run(*words: str) -> tuple[int, str, str]:
        GlobalHydra.instance().clear()
        _collection.cache_clear()  # a new process would not have it, either
        code = cli.run(["data", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield run
    GlobalHydra.instance().clear()


def arrays(config: DatasetConfig) -> Collection:
    """A user's own data set: grey arrays, no files."""
    pixels = torch.arange(40 * 16, dtype=torch.int64).reshape(40, 4, 4).remainder(251).byte()
    labels = torch.arange(40) % 2
    return from_arrays(
        {"train": (pixels[:30], labels[:30]), "test": (pixels[30:], labels[30:])}, ("x", "y"), config.size
    )
