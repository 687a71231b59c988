"""Patterns of layer names: `conv*`, `features.0`. A pattern names a layer or a module that the layer is part of."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(_covers(pattern, name) for pattern in patterns)


def _covers(pattern: str, name: str) -> bool:
    """A pattern names a layer or a module that the layer is part of: conv1 and conv1.0 both mean conv1.0."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: i + 1]), pattern) for i in range(len(parts)))


def last_match(name: str, values: Mapping[str, Any], default: Any) -> Any:
    """The value of the last pattern that matches the name: what is added to a mapping wins over what is there."""
    return next((value for pattern, value in reversed(list(values.items())) if _covers(pattern, name)), default)


def order_counts(patterns: Iterable[str]) -> bool:
    """Whether it may matter which comes last: one covers another, or they are not sorted and nobody asks further."""
    given = list(patterns)
    return given != sorted(given) or any(_covers(one, other) for one in given for other in given if one is not other)


def unmatched(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """Patterns that match none of the names."""
    names = list(names)
    return [pattern for pattern in patterns if not any(_covers(pattern, name) for name in names)]
