"""Imports of torch and of what needs it make half a million objects that stay. Searching them for cycles, again and
again while more are made, took a quarter of a second at each start, and later searches would go through them too."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """In here no cycles are searched for. What is there at the end is left out of all later searches, if a module is
    new: else it would be cycles of a cell before, which must be found.
    """
    known = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:
            gc.freeze()
        gc.enable()
