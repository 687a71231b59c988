"""Hydra's own command line, for what only it can do: sweeps by launchers and sweepers, --cfg, --info and completion."""

import os
import sys
from collections.abc import Callable, Sequence

import hydra
from omegaconf import DictConfig

from fasthebb_cli.settings.conf import conf_directory


def call_hydra(task: Callable[[DictConfig], object], config: str, words: Sequence[str]) -> int:
    """Has Hydra do what the words say, and returns the exit code of whoever ended it.

    Args:
        task: called with each cell's configuration.
        config: the file of conf/ that is composed.
        words: Hydra's flags and overrides.

    Raises:
        Exception: whatever Hydra, its plugins and the task raise.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # it raises errors instead of printing them over several lines
    before, sys.argv = sys.argv, ["fasthebb", *words]  # hydra.main reads its words from nowhere else
    try:
        hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name=config)(task)()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        sys.argv = before
    return 0
