"""Imports of torch and of what needs it make half a million objects that stay. Searching them for cycles, again and
again while more are made, took a quarter of a second at each start, and later searches would go through them too."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """In here no cycles are searched for; what is there at the end is left out of all later searches."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
