"""Imports a user's own function by its name, `my_package.module:function`, and tells where its code fails."""

import inspect
import os
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

NOT_OWN = tuple(
    str(path.resolve())
    for path in (Path(__file__).parents[1], *(Path(sysconfig.get_path(n)) for n in ("stdlib", "platlib", "purelib")))
)


def is_own(name: str) -> bool:
    """Whether a name is that of a user's own function."""
    return ":" in name and not name.startswith("torchvision:")


def imported(key: str, name: str) -> Callable[..., Any]:
    """The function that a setting names.

    Args:
        key: the setting's key, for the error message.
        name: `my_package.module:function`.

    Raises:
        ValueError: there is no such module or function, its import fails, or the function takes no arguments.
    """
    module, _, function = name.partition(":")
    try:
        with own_errors(key, name):
            loaded = import_module(module)
        found: Callable[..., Any] = getattr(loaded, function)
        parameters = inspect.signature(found).parameters
    except OwnError:
        raise
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"{key}={name}: {error}; give my_package.module:function") from error
    if not parameters:
        raise ValueError(f"{key}={name}: takes no arguments; give my_package.module:function")
    return found


class OwnError(ValueError):
    """The user's own code failed. The message names the setting, the file, the line and the error."""


@contextmanager
def own_errors(key: str, name: str, *told: type[Exception]) -> Iterator[None]:
    """Around an import or a call of the user's own code.

    Args:
        key, name: as in `imported`; if the name is one of ours, all errors pass.
        told: errors that pass, as their messages are meant for the user.

    Raises:
        OwnError: the user's code, or what calls it or is called by it, raised an error or ended the program. A lack of
            memory passes, and so does Ctrl-C.
    """
    dtype, folder = torch.get_default_dtype(), _here()
    try:
        yield
    except BaseException as error:
        if isinstance(error, (*told, KeyboardInterrupt, OwnError, torch.OutOfMemoryError)):
            raise
        place = place_in_own_code(error)
        # SystemExit would end the run, which would seem to be done. A generator may be closed, and a module not there
        if not is_own(name) or (place is None and isinstance(error, GeneratorExit | ImportError)):
            raise
        text = error.msg if isinstance(error, SyntaxError) else _text(error)
        what = f"it ends the program ({text})" if isinstance(error, SystemExit) else f"{type(error).__name__}: {text}"
        raise OwnError(f"{key}={name}: {place or 'its code'}: {what}") from error
    finally:  # what it changes for all of the program is changed back
        torch.set_default_dtype(dtype)
        if folder is not None and _here() != folder:
            os.chdir(folder)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  the user's own error may fail to say what it is
        return "(it can't say what it is)"


def _here() -> str | None:
    """The working directory; None: it was deleted."""
    try:
        return os.getcwd()
    except OSError:
        return None


def place_in_own_code(error: BaseException) -> str | None:
    """File and line of the user's code, the innermost if there are several; None: the error is from elsewhere."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return f"{error.filename}, line {error.lineno}"
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    return f"{lines[-1].filename}, line {lines[-1].lineno}" if lines else None


def _is_own(file: str) -> bool:
    """Whether a file is neither of Python, nor of an installed package, nor of this project."""
    path = Path(file)
    return path.is_file() and not any(path.resolve().is_relative_to(folder) for folder in NOT_OWN)
