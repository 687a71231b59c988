"""What tests share: running the command in this process, on the small digits data set and a narrow network."""

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from fasthebb_cli import cli
from fasthebb_cli.settings.conf import conf_directory
from fasthebb_cli.settings.config import Config
from fasthebb_cli.settings.load import load
from tests.lives import end_lives

# digits (1,000 training images of 8 x 8) through a 32nd of conv6: a stage takes a second or two
SMALL = (
    "dataset=digits",
    "model.width=0.03",
    "pretrain.epochs=2",
    "finetune=backprop",
    "finetune.epochs=2",
    "gpu=cpu",
)


@pytest.fixture(autouse=True, scope="session")
def _composed_once() -> Iterator[None]:
    """Hydra takes from memory what it has composed before, and reads YAML with the C parser.

    A sweep composes each cell twice, in a fifth of a second each time: half of the time of a test that sweeps.
    """
    load = ConfigLoaderImpl.load_configuration
    known: dict[str, DictConfig] = {}

    def loaded(loader: ConfigLoaderImpl, *arguments: Any, **named: Any) -> DictConfig:
        key = repr((loader.config_search_path.get_path(), arguments, named))
        if key not in known:
            known[key] = load(loader, *arguments, **named)
        return copy.deepcopy(known[key])

    with (
        patch.object(ConfigLoaderImpl, "load_configuration", loaded),
        patch.object(yaml, "SafeLoader", yaml.CSafeLoader),
    ):
        yield


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Digests of test images don't stay on this machine."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FASTHEBB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    end_lives()


def lacking(what: str) -> NoReturn:
    """Skips a test for want of something this machine hasn't; where FASTHEBB_TEST_ALL says that it has, it fails."""
    if os.environ.get("FASTHEBB_TEST_ALL"):
        pytest.fail(what)
    pytest.skip(what)


def loaded(*overrides: str) -> Config:
    """The configuration that `fasthebb train` with these words composes."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_directory()), version_base="1.3"):
        return load(compose("config", [*overrides, "verb=train"]))


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., "Ran"]]:
    """`command("train", "seed=1")` runs fasthebb with SMALL and out=tmp_path/runs, in this process."""

    def run(verb: str, *arguments: str, small: bool = True) -> "Ran":
        GlobalHydra.instance().clear()
        given = {argument.split("=")[0] for argument in arguments}
        shared = [word for word in SMALL if word.split("=")[0] not in given] if small else []
        if any(word.startswith("model=torchvision") for word in arguments):
            shared = [word for word in shared if not word.startswith("model.width")]
        code = cli.run([*verb.split(), *shared, f"out={tmp_path / 'runs'}", *arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err, tmp_path / "runs")

    yield run
    GlobalHydra.instance().clear()


class Ran:
    """What one call of the command did."""

    def __init__(self, code: int, out: str, err: str, runs: Path) -> None:
        self.code, self.out, self.err, self.runs = code, out, err, runs

    def directories(self, stage: str) -> list[Path]:
        """Directories of a stage's name below out, sorted."""
        return sorted(path for path in self.runs.glob("*") if f"-{stage}-" in path.name)

    def results(self, stage: str) -> dict[str, Any]:
        (directory,) = self.directories(stage)
        results: dict[str, Any] = json.loads((directory / "results.json").read_text())
        return results
