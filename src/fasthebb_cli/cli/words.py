"""The words after a verb: flags and overrides are separated and checked before Hydra sees them.

Hydra's own parser reads each override, and the dataclasses of settings/ tell which keys exist. Hydra finds choices that
do not exist, since its plugins add choices too; see messages.py.
"""

import difflib
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, OverrideType, Quote, QuotedString, ValueType
from hydra.errors import HydraException

from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.conf import conf_directory
from fasthebb_cli.settings.config import GROUPS, SHARED, TopLevel
from fasthebb_cli.settings.stages import KINDS, STAGE_GROUPS
from fasthebb_cli.settings.tools import BenchConfig, DataConfig

SITE_VARIABLE = "FASTHEBB_CONF"  # a folder with choices of the site's own, laid out as conf/
TOP_KEYS: dict[str, type] = {"config": TopLevel, "bench": BenchConfig, "data": DataConfig}  # by file of conf/
TOP_GROUPS = {"config": (*GROUPS, "experiment"), "bench": tuple(SHARED), "data": ("dataset", "model")}
MOST_CELLS = 10_000  # of a sweep; composing them takes minutes
SET_BY_VERB = ("verb", "what", "dry_run")
SHAPES: dict[type, tuple[str, str]] = {dict: ("{name:value}", "a mapping"), list: ("[a,b]", "a list")}
OWN_CODE = r"(model|rule|dataset)=([\w.]+:[\w.]+(?:,[\w.]+:[\w.]+)*)"  # rule=my_package.module:function
SHOWN = {  # Hydra's flags that print instead of running, and the values that each accepts
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
# Keys whose values are text: paths, and a colour such as #7f7f7f
TEXTS = ("out", "init_from", "dataset.root", "dataset.labels", "dataset.classes", "dataset.unlabelled",
         "dataset.background", "label_subset", "archive", "json")  # fmt: skip
IS_HYDRAS = re.compile(r"""(["']).*\1$|(choice|glob|shuffle|sort|tag|str)\(.*\)$""")  # the user quoted it, or sweeps
SHORT = {"-m": "--multirun", "-c": "--cfg", "-i": "--info", "-p": "--package", "-cd": "--config-dir"}


@dataclass(frozen=True)
class Request:
    """What the words after a verb ask for.

    Args:
        config: the file of conf/ that is composed: config, bench or data.
        overrides: in the order of the words; `override.input_line` is what Hydra reads.
        is_sweep: -m was given, so that a key may have several values.
        show: --cfg or --info, with what belongs to it; empty: run.
        folders: folders with further choices of the groups.
    """

    config: str
    overrides: Sequence[Override]
    is_sweep: bool
    show: Sequence[str]
    folders: Sequence[Path]

    @property
    def lines(self) -> list[str]:
        return [str(override.input_line) for override in self.overrides]

    @property
    def is_dry_run(self) -> bool:
        return any(override.key_or_group == "dry_run" and override.value() is True for override in self.overrides)

    def names(self, group: str) -> bool:
        """Whether the user chose from this group."""
        return any(override.key_or_group == group for override in self.overrides)


def read_words(config: str, first: str, words: Sequence[str]) -> Request:
    """Separates flags from overrides and checks both.

    Args:
        config: as in Request.
        first: the override that the verb stands for, as verb=train.

    Raises:
        InputError: an unknown flag or key, a flag without its value, a word that is no override, or several values
            of a key that can't have them.
    """
    for key in SET_BY_VERB[:2]:
        if any(word.lstrip("+").startswith(f"{key}=") for word in words):
            raise InputError(f"{key} is the first word of the command, as in fasthebb train; leave {key}= out")
    overrides, last, show, folders, is_sweep = [first], list[str](), list[str](), list[Path](), False
    rest = iter(words)
    for word in rest:
        flag = SHORT.get(word, word)
        if flag == "--dry-run":
            last.append("dry_run=true")  # whatever other words say
        elif flag == "--multirun":
            is_sweep = True
        elif flag == "--resolve":
            show.append(flag)
        elif flag in (*SHOWN, "--package"):
            show += [flag, _value(word, rest, SHOWN.get(flag, ()))]
        elif flag == "--config-dir":
            folders.append(Path(_value(word, rest)))
        elif flag.startswith("-"):
            raise InputError(f"unknown flag {word}; settings are key=value (see fasthebb --help)")
        elif match := re.fullmatch(OWN_CODE, word):  # a choice with a colon would be no file's name
            overrides += [f"{match[1]}=own", f"{match[1]}.name={match[2]}"]
        elif match := re.match(OWN_CODE, word) or re.match(r"(model|rule|dataset)=.*,[\w.]+:", word):
            raise InputError(f"{word}: a sweep goes over choices of {match[1]} or over functions of your own, not both")
        else:
            overrides.append(word)
    _check_flags(show, folders, is_sweep=is_sweep)
    site = os.environ.get(SITE_VARIABLE)
    if site and not Path(site).is_dir():
        raise InputError(f"{SITE_VARIABLE}={site}: there is no such folder; unset it, or name one laid out as conf/")
    if site:
        folders.append(Path(site))
    read = [_read(_as_text(word, is_sweep=is_sweep), config, folders, is_sweep=is_sweep) for word in overrides + last]
    _check_cells(read)
    return Request(config, read, is_sweep, show, folders)


def _check_cells(overrides: Sequence[Override]) -> None:
    """Refuses a sweep that Hydra would compose for many minutes, before its first cell."""
    swept = [override for override in overrides if override.is_sweep_override() and override.is_discrete_sweep()]
    if prod(map(_count, swept)) > MOST_CELLS:
        raise InputError(_too_many(", ".join(override.key_or_group for override in swept)))


def _count(override: Override) -> int:
    """The number of its values; above MOST_CELLS it is not counted on, as there may be no end."""
    return sum(1 for _ in islice(override.sweep_iterator(), MOST_CELLS + 1))


def _too_many(keys: str) -> str:
    return f"{keys}: more than {MOST_CELLS:,} cells in one sweep; give a part of the values at a time"


def _as_text(word: str, *, is_sweep: bool) -> str:
    """The word, with text in quotes: Hydra's grammar would take 2024_02_13 for a number, and refuse `it's (1)`."""
    key, equals, value = word.partition("=")
    if not equals or key.lstrip("+") not in TEXTS or value in ("", "null") or IS_HYDRAS.match(value) or "${" in value:
        return word
    values = value.split(",") if is_sweep else [value]
    return f"{key}={','.join(QuotedString(text, Quote.single).with_quotes() for text in values)}"


def choices(folders: Sequence[Path], group: str) -> list[str]:
    """The choices of a group in conf/ and in these folders."""
    places = [folder / group for folder in (conf_directory(), *folders)]
    return sorted({str(path.relative_to(place).with_suffix("")) for place in places for path in place.rglob("*.yaml")})


def _value(flag: str, rest: Iterator[str], accepted: Sequence[str] = ()) -> str:
    value = next(rest, "")
    if not value or (accepted and value not in accepted):
        raise InputError(f"{flag} needs a value" + (f", one of {', '.join(accepted)}" if accepted else ""))
    return value


def _check_flags(show: Sequence[str], folders: Sequence[Path], *, is_sweep: bool) -> None:
    if show and not set(SHOWN) & set(show):
        raise InputError(f"{show[0]} is for --cfg; add --cfg job")
    if show and is_sweep:
        raise InputError("--cfg and --info show one configuration; leave -m out")
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--config-dir: there is no folder {folder}")


def _read(word: str, config: str, folders: Sequence[Path], *, is_sweep: bool) -> Override:
    """One override, parsed and checked."""
    override = _expanded(_parsed(word), folders)
    key, is_added = override.key_or_group, override.is_add() or override.is_force_add()
    if override.is_sweep_override():
        _check_sweep(override, is_sweep=is_sweep)
    if override.is_hydra_override():
        return override  # Hydra knows its own keys
    if key in TOP_GROUPS[config]:
        if is_added and override.package is None:
            raise InputError(f"{word}: the group {key} is there already; leave the + out")
        _check_choice(override, folders)
        return override
    keys = _keys(config)
    _check_shape(override, keys.get(key))
    if any(f"{key}.".startswith(f"{name}.") for name, shape in keys.items() if shape is dict):
        # Hydra adds no key to a mapping that is there, unless ++ says so
        return _parsed(f"++{word}") if override.type == OverrideType.CHANGE else override
    if key not in keys and not is_added:  # `load` checks keys that are added
        raise InputError(_unknown_key(key, config, keys))
    return override


def _expanded(override: Override, folders: Sequence[Path]) -> Override:
    """A sweep over choices that match a pattern, as rule=glob(hpca*), with the choices in its place.

    Raises:
        InputError: no choice matches.
    """
    if override.value_type != ValueType.GLOB_CHOICE_SWEEP:
        return override
    group, value = override.key_or_group, override.value()
    assert isinstance(value, Glob)
    known = [name for name in choices(folders, group) if "/" not in name and name != "own"]
    found = value.filter(known)
    if not found:
        raise InputError(f"{override.input_line}: no choice matches; {group} can be: {', '.join(known)}")
    return _parsed(f"{str(override.input_line).partition('=')[0]}={','.join(found)}")


def _check_sweep(override: Override, *, is_sweep: bool) -> None:
    key = override.key_or_group
    if not is_sweep:
        raise InputError(f"{key}: several values need -m (a sweep); a list needs brackets and quotes: '{key}=[a,b]'")
    if key == "out":
        raise InputError("out can't be swept: its cells report below one folder")
    if override.is_hydra_override():
        raise InputError(f"{key} can't be swept: all cells of a sweep share it")
    if override.is_interval_sweep():
        interval = override.value()
        if isinstance(interval, IntervalSweep) and not interval.start < interval.end:  # type: ignore[operator]
            raise InputError(f"{override.input_line}: its first number must be below its second")
    if override.is_discrete_sweep():
        try:
            count = _count(override)
        except (ValueError, TypeError, ArithmeticError, HydraException) as error:  # as a range in steps of 0
            raise InputError(
                f"{override.input_line}: it makes no list of values ({' '.join(str(error).split())})"
            ) from error
        if not count:
            raise InputError(f"{override.input_line}: there is no value in it, so the sweep would run nothing")
        if count > MOST_CELLS:  # what is checked next goes through all of them
            raise InputError(_too_many(key))


def _parsed(word: str) -> Override:
    try:
        if word.strip():
            return OverridesParser.create().parse_override(word)
    except HydraException:
        pass
    raise InputError(f"can't read {word!r}; an override is key=value, lists and ranges quoted: 'seed=range(0,5)'")


def _check_choice(override: Override, folders: Sequence[Path]) -> None:
    """A group needs the name of a choice; a mapping changes keys of the group, and `~group` takes it away."""
    group = override.key_or_group
    if override.value_type in (ValueType.INTERVAL_SWEEP, ValueType.GLOB_CHOICE_SWEEP):
        return
    values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    for value in values:
        texts = value if isinstance(value, list) else [value]
        named = isinstance(value, dict) or all(
            isinstance(text, str | QuotedString) and not _leads_out(text) for text in texts
        )
        if not named and not (value is None and override.is_delete()):
            text = "null" if value is None else value
            raise InputError(
                f"{group}={text}: a group needs a choice; {group} can be: {', '.join(choices(folders, group))}"
            )


def _leads_out(choice: str | QuotedString) -> bool:
    """Whether a choice is a path to a file outside of its group."""
    text = choice.text if isinstance(choice, QuotedString) else choice
    return text.startswith("/") or ".." in text.split("/")


def _check_shape(override: Override, shape: type | None) -> None:
    """A list is no mapping, and a mapping no list: Hydra would say that it can't merge them."""
    if shape is None or override.is_interval_sweep():
        return
    key, example, name = override.key_or_group, *SHAPES[shape]
    for value in override.sweep_iterator() if override.is_sweep_override() else [override.value()]:
        other = isinstance(value, dict | list) or (shape is dict and not isinstance(value, str | QuotedString | None))
        if other and not isinstance(value, shape):
            raise InputError(f"{key} must be {name}, as in '{key}={example}', not {value}")


def _keys(config: str) -> dict[str, type | None]:
    """Every key outside of hydra's -> dict for a mapping, to which the user may add keys; list; None for one value."""
    keys = {f.name: _shape(f.type) for f in fields(TOP_KEYS[config]) if f.name not in TOP_GROUPS[config]}
    if config == "config":
        keys["extra"] = dict
    for group in TOP_GROUPS[config]:
        if group in GROUPS:
            kinds = [KINDS[kind] for kind in STAGE_GROUPS.get(group, ())] or [GROUPS[group]]
            for cls in kinds:
                keys |= {f"{group}.{field.name}": _shape(field.type) for field in fields(cls)}
    return keys


def _shape(wanted: Any) -> type | None:
    """dict or list, if a type, or one of a union of types, is that."""
    kinds = {get_origin(kind) for kind in (wanted, *get_args(wanted))}
    return next((shape for shape in SHAPES if shape in kinds), None)


def _unknown_key(key: str, config: str, keys: Collection[str]) -> str:
    group, dot, _ = key.partition(".")
    here = [name for name in keys if name.startswith(f"{group}.")]
    if not dot or not here:
        here = [name for name in keys if "." not in name and name not in SET_BY_VERB] + list(TOP_GROUPS[config])
    near = difflib.get_close_matches(key, [*here, *keys], 1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown key {key}; {hint}accepted here: {', '.join(here)}"
