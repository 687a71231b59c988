"""The errors that a user sees as one line; every other error is a fault of ours and shows its traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """Bad input, exit code 2. The message names the key or file and what would be accepted."""


class RunError(Exception):
    """A run failed, exit code 1. The message names the layer, file or stage."""


class Interrupted(Exception):
    """The user or the system stopped the run, exit code 130. The message names the place at which it was saved."""


@contextmanager
def bad_input() -> Iterator[None]:
    """Turns the library's ValueError into an InputError with the same message."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error
