"""Where the competitive rules are one kernel, and where they are eager."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fasthebb import fused, rules
from fasthebb.responses import PreActivation, dot


@pytest.fixture(autouse=True)
def asked_again() -> Iterator[None]:
    fused._has_triton.cache_clear()
    yield
    fused._has_triton.cache_clear()


@pytest.mark.slow
def test_the_kernel_in_triton_s_interpreter() -> None:
    pytest.importorskip("triton")
    tests = Path(__file__).with_name("in_interpreter.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", str(tests)]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout


def test_without_a_gpu_or_triton_every_rule_is_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    pre = PreActivation(torch.ones(3, 1, 2))
    assert not fused.fuses(dot, rules.softhebb, {}, pre)
    assert not fused._has_triton("cpu")
    assert fused._has_triton("cuda") is (find_spec("triton") is not None)
    fused._has_triton.cache_clear()
    monkeypatch.setattr(fused, "find_spec", lambda name: None)
    assert not fused._has_triton("cuda")
