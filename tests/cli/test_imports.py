"""While torch is imported no cycles are searched for, and afterwards they are again."""

import gc
import sys
from types import ModuleType

import pytest

from fasthebb_cli.cli.imports import importing


def failing() -> None:
    with importing():
        assert not gc.isenabled()
        raise ImportError


def test_cycles_are_searched_for_again_even_if_an_import_fails() -> None:
    with pytest.raises(ImportError):
        failing()
    assert gc.isenabled()


def test_what_was_imported_is_not_searched_again_and_what_a_cell_left_is(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.unfreeze()
    kept: list[list[int]] = [[] for _ in range(1000)]
    with importing():
        pass
    assert gc.get_freeze_count() < len(kept)
    with importing():
        monkeypatch.setitem(sys.modules, "a_new_module", ModuleType("a_new_module"))
    assert gc.get_freeze_count() >= len(kept)
    gc.unfreeze()
