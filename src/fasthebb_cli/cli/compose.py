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
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig

from fasthebb_cli.cli.messages import explain
from fasthebb_cli.cli.words import Request
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.conf import conf_directory
from fasthebb_cli.settings.config import GROUPS
from fasthebb_cli.settings.stages import STAGE_GROUPS

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

    Of a swept group it has the first choice, since other keys may belong to that group's choices.

    Raises:
        InputError: it can't be composed.
    """
    lines = [line for override in request.overrides if (line := _shared_line(override)) is not None]
    if refused := _refused_by_cells(request):
        raise InputError(refused)
    with _composing(request):
        shared = compose(request.config, [*lines, *searchpath(request)], return_hydra_config=True)
    for override in request.overrides:
        if override.is_interval_sweep() and not is_search(shared):
            key = override.key_or_group
            raise InputError(
                f"{key}: interval() is for a search; add hydra/sweeper=optuna, or list the values: {key}=a,b"
            )
    return shared


def _shared_line(override: Override) -> str | None:
    """An override for what cells share; None: it sweeps over values, or over choices that Hydra has to find."""
    if not override.is_sweep_override():
        return str(override.input_line)
    if not _is_swept_choice(override):
        return None
    return f"{override.key_or_group}={next(override.sweep_string_iterator())}"


def _is_swept_choice(override: Override) -> bool:
    """Whether it lists several choices of a group."""
    is_listed = override.is_sweep_override() and override.is_discrete_sweep()
    is_group = override.key_or_group in (*GROUPS, "experiment")
    return is_group and is_listed and override.value_type != ValueType.GLOB_CHOICE_SWEEP


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
        raise InputError(explain(error, request.folders)) from error
    except yaml.YAMLError as error:
        raise InputError(" ".join(str(error).split())) from error
    except (UnicodeDecodeError, RecursionError) as error:
        places = " or ".join(map(str, request.folders)) or "conf/"
        what = "no text in UTF-8" if isinstance(error, UnicodeDecodeError) else "nested too deeply"
        raise InputError(f"a choice in {places} is {what} ({str(error)[:100]})") from error


def sweep_lines(request: Request) -> list[str]:
    """The overrides of a sweep for Hydra, which first composes a configuration without the swept choices.

    So a key that only swept choices have, as finetune.epochs with finetune=backprop,frozen, is added by force: `load`
    names the cells that lack it.
    """
    swept = {override.key_or_group for override in request.overrides if override.is_sweep_override()}
    may_differ = {group for group in STAGE_GROUPS if swept & {group, "rule", "experiment"}}
    return [
        f"++{override.input_line}"
        if override.type == OverrideType.CHANGE
        and override.key_or_group.partition(".")[0] in may_differ - {override.key_or_group}
        else str(override.input_line)
        for override in request.overrides
    ]


def _refused_by_cells(request: Request) -> str | None:
    """That some choices of a swept group lack a key which others have; None: they agree."""
    for swept in request.overrides:
        group = swept.key_or_group
        if not _is_swept_choice(swept) or len(STAGE_GROUPS.get(group, ())) < 2:
            continue
        names = {
            word.key_or_group.removeprefix(f"{group}.")
            for word in request.overrides
            if word.key_or_group.startswith(f"{group}.") and word.type == OverrideType.CHANGE
        }
        if not names:
            continue
        nodes = {}
        with _composing(request):
            for choice in swept.sweep_string_iterator():
                nodes[choice] = compose(request.config, [f"{group}={choice}", *searchpath(request)])[group]
        for name in sorted(names):
            having = [choice for choice, node in nodes.items() if name in node]
            lacking = [choice for choice in nodes if choice not in having]
            if having and lacking:
                accepted = ", ".join(map(str, nodes[lacking[0]]))
                return (
                    f"{group}.{name}: cells with {group}={','.join(lacking)} do not have this key, and accept: "
                    f"{accepted}; sweep {group}={','.join(having)} by a command of its own, or sweep experiment=A,B "
                    "over files that set the keys of their choice"
                )
    return None
