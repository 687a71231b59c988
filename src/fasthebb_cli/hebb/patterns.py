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


def first_match(name: str, values: Mapping[str, Any], default: Any) -> Any:
    """The value of the first pattern that matches the name."""
    return next((value for pattern, value in values.items() if _covers(pattern, name)), default)
