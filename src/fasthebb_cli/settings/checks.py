"""Each function checks one setting. It raises a ValueError that names the setting and what is accepted."""

import math
import os

LARGEST = 10**9  # a larger whole number is a typing mistake
LARGEST_FLOAT = 1e30  # with what optimizers multiply it by, it stays below the largest number of float32, 3.4e38
LARGEST_FACTOR = 1e6  # of a rate, which may be LARGEST_FLOAT
LONGEST_NAME = 255  # bytes of a file's name, on nearly all systems


def at_least(name: str, value: int, low: int, high: int = LARGEST) -> None:
    if value < low:
        raise ValueError(f"{name} must be at least {low}, not {value}")
    if value > high:
        raise ValueError(f"{name} must be at most {high}, not {value}")


def is_path(name: str, value: str | None) -> None:
    if value == "":
        raise ValueError(f"{name} is empty; give a path, or leave it out")
    if value is not None and "\0" in value:
        raise ValueError(f"{name} has a character in it that no file's name can have")
    longest = max((len(os.fsencode(part)) for part in (value or "").split("/")), default=0)
    if longest > LONGEST_NAME:
        raise ValueError(f"{name}: a folder's or file's name takes {longest} bytes, and can have {LONGEST_NAME}")


def are_factors(name: str, factors: dict[str, float]) -> None:
    for pattern, factor in factors.items():
        if not 0 <= factor <= LARGEST_FACTOR:
            raise ValueError(f"{name}.{pattern} must be between 0 and {LARGEST_FACTOR:,.0f}, not {factor}")


def above(name: str, value: float, low: float) -> None:
    if not low < value <= LARGEST_FLOAT:
        limit = f" and at most {LARGEST_FLOAT}" if value > low else ""
        raise ValueError(f"{name} must be above {low}{limit}, not {value}")


def in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high or (isinstance(value, float) and abs(value) > LARGEST_FLOAT):
        most = LARGEST_FLOAT if math.isinf(high) and low <= value < math.inf else high
        limits = f"at least {low}" if math.isinf(most) else f"between {low} and {most}"
        raise ValueError(f"{name} must be {limits}, not {value}")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def is_colour(name: str, value: str) -> None:
    from PIL import ImageColor  # imported where it is needed, so that commands without images start sooner

    try:
        ImageColor.getrgb(value)
    except ValueError:
        raise ValueError(f"{name} must be a colour, as white or '#7f7f7f', not {value!r}") from None
