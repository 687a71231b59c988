"""Whether a value from a file has the type that its reader expects. Files may be damaged, or a stranger's."""

import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

LARGEST = 2**63 - 1  # of whole numbers: others hold no larger ones
WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}


def check(name: str, value: object, wanted: Any) -> None:
    """Checks a value that JSON or YAML can hold.

    Args:
        name: of the value, for the message.
        wanted: str, int, float, bool, None, Any, Literal[...], list[...], dict[str, ...], a union of such types, or a
            mapping of the keys that are looked at to their types; an absent key passes if its type has None. Floats are
            finite.

    Raises:
        ValueError: the message says what it must be, and what it is.
    """
    if wanted is Any:
        return
    if isinstance(wanted, Mapping):
        _is(name, value, dict, "a mapping")
        assert isinstance(value, dict)
        for key, inner in wanted.items():
            check(f"{name}.{key}" if name else key, value.get(key), inner)
    elif get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise ValueError(f"{name} must be one of {', '.join(map(str, get_args(wanted)))}, not {_shown(value)}")
    elif isinstance(wanted, UnionType):
        if not any(_passes(value, kind) for kind in get_args(wanted)):
            raise ValueError(f"{name} must be {' or '.join(map(_word, get_args(wanted)))}, not {_shown(value)}")
    elif get_origin(wanted) is list:
        _is(name, value, list, "a list")
        assert isinstance(value, list)
        (inner,) = get_args(wanted)
        if inner is str and {*map(type, value)} == {str}:
            return  # the same answer, and faster: a confusion matrix has thousands of numbers
        if inner is int and {*map(type, value)} == {int} and min(value) >= -LARGEST and max(value) <= LARGEST:
            return
        for number, item in enumerate(value):
            check(f"{name}[{number}]", item, inner)
    elif get_origin(wanted) is dict:
        _is(name, value, dict, "a mapping")
        assert isinstance(value, dict)
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{name} must have texts as keys, not {_shown(key)}")
            check(f"{name}.{key}", item, get_args(wanted)[1])
    elif not _is_plain(value, NoneType if wanted is None else wanted):
        raise ValueError(f"{name} must be {_word(wanted)}, not {_shown(value)}")


def _passes(value: object, wanted: Any) -> bool:
    try:
        check("", value, wanted)
    except ValueError:
        return False
    return True


def _is(name: str, value: object, kind: type, word: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{name or 'it'} must be {word}, not {_shown(value)}")


def _is_plain(value: object, kind: type) -> bool:
    if kind is float:
        return type(value) in (int, float) and math.isfinite(float(str(value)))  # a whole number may be too large
    if kind is int:
        return type(value) is int and abs(value) <= LARGEST
    return type(value) is kind


def _word(wanted: Any) -> str:
    if get_origin(wanted) is not None:
        return "a list" if get_origin(wanted) is list else "a mapping"
    return WORDS[NoneType if wanted is None else wanted]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
