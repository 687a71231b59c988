"""Patterns of layer names: `conv*`, `features.0`.

A pattern matches a layer if it matches the layer's name or the name of a module that contains it: conv1 and conv1.0
both match conv1.0.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether at least one pattern matches the layer."""
    return any(_covers(pattern, name) for pattern in patterns)


def _covers(pattern: str, name: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: i + 1]), pattern) for i in range(len(parts)))


def last_match(name: str, values: Mapping[str, Any], default: Any) -> Any:
    """The value of the last pattern that matches the layer, so that a pattern added later wins; else the default."""
    return next((value for pattern, value in reversed(list(values.items())) if _covers(pattern, name)), default)


def order_counts(patterns: Iterable[str]) -> bool:
    """Whether the order of the patterns may change `last_match`.

    It may if one pattern covers another. For unsorted patterns the answer is always yes, without a closer look.
    """
    given = list(patterns)
    return given != sorted(given) or any(_covers(one, other) for one in given for other in given if one is not other)


def unmatched(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """The patterns that match none of the layers."""
    names = list(names)
    return [pattern for pattern in patterns if not any(_covers(pattern, name) for name in names)]
