"""Each function checks one setting. It raises a ValueError that names the setting and what is accepted."""

import math

LARGEST = 10**9  # a larger whole number is a typing mistake


def at_least(name: str, value: int, low: int, high: int = LARGEST) -> None:
    if value < low:
        raise ValueError(f"{name} must be at least {low}, not {value}")
    if value > high:
        raise ValueError(f"{name} must be at most {high}, not {value}")


def not_empty(name: str, value: str | None) -> None:
    if value == "":
        raise ValueError(f"{name} is empty; give a path, or leave it out")


def are_factors(name: str, factors: dict[str, float]) -> None:
    for pattern, factor in factors.items():
        if not (factor >= 0 and math.isfinite(factor)):
            raise ValueError(f"{name}.{pattern} must be at least 0 and finite, not {factor}")


def above(name: str, value: float, low: float) -> None:
    if not (value > low and math.isfinite(value)):
        raise ValueError(f"{name} must be above {low}, not {value}")


def in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high or not math.isfinite(value):
        limits = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
        raise ValueError(f"{name} must be {limits}, not {value}")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
