"""From checked words to configurations, by Hydra's Compose API: nothing runs here, and no folder is made."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig

from fasthebb_cli.cli.messages import explain, unknown_key
from fasthebb_cli.cli.words import Request
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.conf import conf_directory

LAUNCHER = ("hydra/launcher=", "hydra.launcher.")


class ComposedCell(NamedTuple):
    """One cell of a sweep: the overrides that it was composed of, without Hydra's, and its configuration."""

    overrides: list[str]
    cfg: DictConfig


def compose_one(request: Request) -> DictConfig:
    """The configuration of a request without -m.

    Raises:
        InputError: it can't be composed.
    """
    with _composing(request):
        return compose(request.config, [*request.lines, *searchpath(request)])


def compose_sweep(request: Request) -> DictConfig:
    """What the cells of a sweep share, with Hydra's own node: the request without the keys that have several values.

    Raises:
        InputError: it can't be composed.
    """
    lines = [str(override.input_line) for override in request.overrides if not override.is_sweep_override()]
    with _composing(request):
        shared = compose(request.config, [*lines, *searchpath(request)], return_hydra_config=True)
    for override in request.overrides:
        if override.is_interval_sweep() and not is_search(shared):
            key = override.key_or_group
            raise InputError(
                f"{key}: interval() is for a search; add hydra/sweeper=optuna, or list the values: {key}=a,b"
            )
    return shared


def is_search(shared: DictConfig) -> bool:
    """Whether the sweeper chooses its cells as it goes."""
    return not str(shared.hydra.sweeper["_target_"]).endswith(".BasicSweeper")


def compose_cells(request: Request, what: str) -> list[ComposedCell]:
    """The cells of a sweep, as Hydra's basic sweeper makes them; no launcher has a part in it.

    Args:
        what: what needs the cells, for the message.

    Raises:
        InputError: a cell can't be composed, or another sweeper is asked for, which makes its cells as it goes.
    """
    kept = [override for override in request.overrides if not str(override.input_line).startswith(LAUNCHER)]
    common = compose_sweep(replace(request, overrides=kept))
    if is_search(common):
        raise InputError(f"hydra/sweeper: a search makes its cells as it goes; {what} needs a sweep without one")
    shared = [str(override.input_line) for override in kept if override.is_hydra_override()]
    swept = [f"{key}={value}" for key, value in (common.hydra.sweeper.params or {}).items()]
    swept += [str(override.input_line) for override in kept if not override.is_hydra_override()]
    with _composing(request):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        (cells,) = BasicSweeper.split_arguments(parser.parse_overrides(swept), None)
        return [
            ComposedCell(words, compose(request.config, [*shared, *words, *searchpath(request)])) for words in cells
        ]


def searchpath(request: Request) -> list[str]:
    """The override that adds the folders with further choices."""
    folders = ",".join(f"'file://{folder.resolve()}'" for folder in request.folders)
    return [f"hydra.searchpath=[{folders}]"] if folders else []


@contextmanager
def _composing(request: Request) -> Iterator[None]:
    with composition_errors(request), initialize_config_dir(str(conf_directory()), version_base="1.3"):
        yield


@contextmanager
def composition_errors(request: Request) -> Iterator[None]:
    """Around calls of Hydra: what it raises of a configuration is bad input."""
    try:
        yield
    except HydraException as error:
        raise InputError(_refused_by_cells(request, error) or explain(error, request.folders)) from error
    except yaml.YAMLError as error:
        raise InputError(" ".join(str(error).split())) from error


def _refused_by_cells(request: Request, error: HydraException) -> str | None:
    """That some choices of a swept group lack a key which others have; None: the error is another one."""
    found = unknown_key(error)
    if found is None:
        return None
    key, accepted = found
    group, _, name = key.rpartition(".")
    swept = [word for word in request.overrides if word.key_or_group == group and word.is_sweep_override()]
    if not swept or not swept[0].is_discrete_sweep() or swept[0].value_type == ValueType.GLOB_CHOICE_SWEEP:
        return None
    having, lacking = list[str](), list[str]()
    GlobalHydra.instance().clear()  # the failed call has left it
    with initialize_config_dir(str(conf_directory()), version_base="1.3"):
        for choice in swept[0].sweep_string_iterator():
            node = compose(request.config, [f"{group}={choice}", *searchpath(request)])[group]
            (having if name in node else lacking).append(choice)
    if not having:
        return None
    return (
        f"{key}: cells with {group}={','.join(lacking)} do not have this key, and accept: {', '.join(accepted)}; "
        f"sweep {group}={','.join(having)} by a command of its own, or sweep experiment=A,B over files that set the "
        "keys of their choice"
    )
