"""From the composed configuration to checked dataclasses: the only file of the settings that sees a DictConfig."""

from dataclasses import fields
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException, ValidationError

from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.conf import defaults_of
from fasthebb_cli.settings.config import GROUPS, SHARED, Config, DatasetConfig, TopLevel
from fasthebb_cli.settings.kind import StageSettings
from fasthebb_cli.settings.stages import ALL_KINDS, KINDS, STAGE_GROUPS, STAGES_OF_VERB
from fasthebb_cli.settings.tools import BenchConfig, DataConfig

T = TypeVar("T")


def completed(cfg: DictConfig) -> DictConfig:
    """The composed configuration with the default of every key that a group or an extra stage lacks.

    `+extra.head.kind=finetune` says no more than the kind, and a choice in FASTHEBB_CONF may leave keys out.
    """
    plain: dict[Any, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    for group in GROUPS:
        if isinstance(plain.get(group), dict):
            plain[group] = _filled(plain[group], _kind(plain[group], group))
    extra = plain.get("extra")
    if isinstance(extra, dict):
        plain["extra"] = {
            name: _filled(node, node["kind"]) if isinstance(node, dict) and node.get("kind") in KINDS else node
            for name, node in extra.items()
        }
    return OmegaConf.create(plain)


def with_defaults(cls: type[T], **values: Any) -> T:
    """The settings of one group: the values that are given, and the defaults of all other keys.

    Raises:
        InputError: as `load`.
    """
    group = next(group for group, accepted in GROUPS.items() if accepted is cls)
    cfg = OmegaConf.create({"rule": defaults_of("rule"), group: _filled(values, group)})
    return _typed(cls, _resolved(cfg)[group], group)


def load_bench(cfg: DictConfig) -> BenchConfig:
    """The composed configuration of `fasthebb bench`.

    Raises:
        InputError: as `load`.
    """
    cfg = _resolved(completed(cfg))
    for group, cls in SHARED.items():  # one by one, so that errors name the whole key
        _typed(cls, cfg[group], group)
    return _typed(BenchConfig, cfg, "")


def load_data(cfg: DictConfig) -> DataConfig:
    """The composed configuration of `fasthebb data`.

    Raises:
        InputError: as `load`.
    """
    cfg = _resolved(completed(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "model"])))
    _typed(DatasetConfig, cfg.dataset, "dataset")  # as in load_bench
    return _typed(DataConfig, cfg, "")


def load(cfg: DictConfig) -> Config:
    """The composed configuration as checked dataclasses.

    Raises:
        InputError: an unknown key, a wrong type, a value out of range, a missing value or a bad interpolation.
    """
    for group in GROUPS:
        if not isinstance(cfg.get(group), DictConfig):
            raise InputError(f"{group} must name a choice of the group, as in {group}={_example(group)}")
    cfg = _resolved(completed(cfg))
    top = _typed(TopLevel, OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in (*GROUPS, "extra")]), "")
    shared: dict[str, Any] = {group: _typed(cls, cfg[group], group) for group, cls in SHARED.items()}
    settings: dict[str, StageSettings] = {
        group: _typed(KINDS[_kind(cfg[group], group)], cfg[group], group) for group in STAGE_GROUPS
    }
    settings |= _extra(cfg.get("extra") or {})
    names = top.stages if top.stages is not None else STAGES_OF_VERB[top.verb]
    if not names:
        raise InputError("stages is empty; name at least one of: " + ", ".join(settings))
    for name in names:
        if not isinstance(name, str) or name not in settings:  # a list in the list is no string
            raise InputError(f"stages: unknown stage {name!r}; choose from: {', '.join(settings)}")
    return Config(**shared, settings=settings, **(vars(top) | {"stages": list(names)}))


def _extra(extra: Any) -> dict[str, StageSettings]:
    """The stages below `extra` by name."""
    if not isinstance(extra, DictConfig | dict):
        raise InputError(f"extra holds stages by name, as in +finetune@extra.probe=frozen; it can't be {extra}")
    settings: dict[str, StageSettings] = {}
    for key, node in extra.items():
        name = str(key)
        kind = node.get("kind") if isinstance(node, DictConfig) else None
        if kind not in KINDS:
            raise InputError(
                f"extra.{name}.kind must be one of {', '.join(KINDS)}, not {kind}; "
                f"add a stage as in +finetune@extra.{name}=frozen"
            )
        if name in ALL_KINDS:
            raise InputError(f"extra.{name}: the name is taken by the stage of that kind; choose another")
        settings[name] = _typed(KINDS[kind], node, f"extra.{name}")
    return settings


def _kind(node: Any, group: str) -> str:
    """The kind of stage that a group sets up, or the group itself."""
    kind = node.get("kind")
    return str(kind) if kind in STAGE_GROUPS.get(group, ()) else group


def _filled(node: dict[Any, Any], group: str) -> dict[Any, Any]:
    """A mapping that the node has counts as it is: it is not merged with the default's."""
    return node | {key: value for key, value in defaults_of(group).items() if key not in node}


def _resolved(cfg: DictConfig) -> DictConfig:
    try:
        return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if getattr(error, "full_key", None) else ""
        raise InputError(f"{key}{_first_line(error)}") from error


def _typed(cls: type[T], node: DictConfig, key: str) -> T:
    """One group as its dataclass. Errors name the whole key and what is accepted."""
    dot = f"{key}." if key else ""
    accepted = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for name in map(str, node):
        if name not in accepted:
            raise InputError(f"unknown key {dot}{name}; {key or 'the top level'} accepts: {', '.join(accepted)}")
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), node))
    except ConfigKeyError as error:
        raise InputError(f"unknown key {dot}{error.key}; {key} accepts: {', '.join(accepted)}") from error
    except MissingMandatoryValue as error:
        name = dot + str(error.key or "KEY")
        raise InputError(f"{name} has no value; set it, as in {name}=VALUE") from error
    except ValidationError as error:
        name = dot + str(error.full_key)
        if "is not a ListConfig" in str(error):
            value = OmegaConf.select(node, str(error.full_key))
            raise InputError(f"{name} must be a list, as in '{name}=[{value}]'") from error
        raise InputError(f"{name}: {_first_line(error)}") from error
    except OmegaConfBaseException as error:
        raise InputError(f"{key or 'configuration'}: {_first_line(error)}") from error
    except ValueError as error:
        raise InputError(f"{dot}{error}") from error
    assert isinstance(typed, cls)
    return typed


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")


def _example(group: str) -> str:
    return {"dataset": "cifar10", "rule": "hpca", "model": "conv6", "gpu": "auto"}.get(group, "default")
