"""A user's own function by its name, `my_package.module:function`."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any


def imported(key: str, name: str) -> Callable[..., Any]:
    """The function that a setting names.

    Raises:
        ValueError: naming the key, when there is no such module or function.
    """
    module, _, function = name.partition(":")
    try:
        found: Callable[..., Any] = getattr(import_module(module), function)
        parameters = inspect.signature(found).parameters
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"{key}={name}: {error}; give my_package.module:function") from error
    if not parameters:
        raise ValueError(f"{key}={name}: takes no arguments; give my_package.module:function")
    return found
