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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("response", "kind", "units", "winners"),
    [
        ("raised_cosine", "shares", 128, 1),
        ("raised_cosine", "powers", 128, 1),
        ("raised_cosine", "winners", 256, 5),
        ("nearness", "winners", 512, 1),
        ("dot", "signed", 2048, 1),
        ("raised_cosine", "shares", fused.MOST_UNITS, 1),
    ],
)
def test_the_kernel_compiles_for_gpus_that_are_not_here(
    response: str, kind: str, units: int, winners: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an A100 and an H100, down to their machine code, which needs no GPU."""
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fasthebb import kernels

    pointers = ("dot", "beside", "gate", "shares", "totals")
    rows = max(1, kernels.AT_ONCE // units)
    fixed = {"RESPONSE": response, "KIND": kind, "WINNERS": winners, "ROWS": rows, "UNITS": units}
    types = dict.fromkeys(kernels._gates.arg_names, "i32") | dict.fromkeys(pointers, "*fp32")
    types |= {"sharpness": "fp32", "out": "fp32"} | dict.fromkeys(fixed, "constexpr")
    for architecture in (80, 90):
        made = triton.compile(
            ASTSource(kernels._gates, types, constexprs=fixed),
            target=GPUTarget("cuda", architecture, 32),
            options={"num_warps": 4 if units <= kernels.AT_ONCE else 16},
        )
        assert made.asm["cubin"]
        assert ".local" not in made.asm["ptx"], "numbers of a program do not fit its registers"
