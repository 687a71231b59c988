"""Imports a user's own function by its name, `my_package.module:function`."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any


def imported(key: str, name: str) -> Callable[..., Any]:
    """The function that a setting names.

    Args:
        key: the setting's key, for the error message.
        name: `my_package.module:function`.

    Raises:
        ValueError: there is no such module or function, or the function takes no arguments.
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
