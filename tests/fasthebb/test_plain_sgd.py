"""Plain gradient descent against torch.optim.SGD."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fasthebb.plain_sgd import PlainSGD


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(3, 4)) for _ in range(3)]


def test_steps_are_those_of_torch_to_the_bit() -> None:
    mine, theirs = parameters(), parameters()
    optimizers = [
        make([{"params": [one], "lr": 0.1 * (k + 1)} for k, one in enumerate(values)])
        for make, values in ((PlainSGD, mine), (torch.optim.SGD, theirs))
    ]
    for _ in range(3):
        for one, other in zip(mine[:2], theirs[:2], strict=True):  # the third has no gradient
            one.grad = torch.randn(3, 4)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] *= 0.5
            optimizer.step()
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(mine[2], parameters()[2])


def test_its_state_is_its_rates() -> None:
    first, second = (PlainSGD([{"params": [one], "lr": 0.1}]) for one in parameters()[:2])
    first.param_groups[0].update(lr=0.02, initial_lr=0.1)
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["lr"] == 0.02
    assert second.param_groups[0]["initial_lr"] == 0.1
    assert second.param_groups[0]["params"] is not first.param_groups[0]["params"]
    torch_s = torch.optim.SGD([{"params": parameters()[:1], "lr": 0.3}])
    second.load_state_dict(torch_s.state_dict())
    assert second.param_groups[0]["lr"] == 0.3


@pytest.mark.slow
def test_pre_training_starts_without_the_tracer_of_torch_compile_and_without_scikit_learn(tmp_path: Path) -> None:
    words = ["pretrain", "dataset=digits", "dataset.train_samples=64", "pretrain.epochs=1", f"out={tmp_path}"]
    heavy = {"torch._dynamo", "sklearn", "scipy", "pandas", "matplotlib"}
    code = (
        f"import sys; from fasthebb_cli import cli; code = cli.run({words}); "
        f"sys.exit(code or ' '.join({heavy} & sys.modules.keys()) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
