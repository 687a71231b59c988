"""The two kinds of error that a user sees as one line; everything else is a fault of ours and shows its traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """What was asked for can't be done: exit code 2. The message names the key or file and what would be accepted."""


class RunError(Exception):
    """What was asked for failed while running: exit code 1. The message names the layer, file or stage."""


class Interrupted(Exception):
    """The user or the system asked the run to stop; its state is saved at the place that the message names."""


@contextmanager
def bad_input() -> Iterator[None]:
    """Around a call of the library, which knows no errors but Python's: its ValueError is bad input here.

    Raises:
        InputError: in the same words.
    """
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error
