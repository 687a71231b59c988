"""While torch is imported no cycles are searched for, and afterwards they are again."""

import gc

import pytest

from fasthebb_cli.cli.imports import importing


def failing() -> None:
    with importing():
        assert not gc.isenabled()
        raise ImportError


def test_cycles_are_searched_for_again_even_if_an_import_fails() -> None:
    kept: list[list[int]] = [[] for _ in range(1000)]
    with pytest.raises(ImportError):
        failing()
    assert gc.isenabled()
    assert gc.get_freeze_count() >= len(kept)
    gc.unfreeze()
