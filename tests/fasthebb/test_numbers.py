"""A change of the engine keeps the numbers: weights after 50 steps against stored projections, in float64.

After an intended change, store them again: python -m tests.fasthebb.test_numbers [RULE ...]. Of all rules, or of those
that are named: the last digits of the others would only show the machine.
"""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fasthebb.learner import HebbianLearner
from fasthebb.settings import RULES, StepSetting

STORED = Path(__file__).with_name("numbers.json")
NORMALISED = {"hebb", "bcm", "ica", "hica"}


def projections(rule: str) -> dict[str, list[float]]:
    """Inner products of each layer's weights with two fixed waves, after 50 steps on fixed images."""
    layers: list[nn.Module] = [
        nn.Conv2d(2, 6, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 2, stride=2, padding=1, bias=False),
        nn.ReLU(), nn.Flatten(), nn.Linear(32, 40, bias=False),
    ]  # fmt: skip
    network = nn.Sequential(*layers).double()
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                count = layer.weight.numel()
                layer.weight.copy_(waves(count, 1.7).reshape(layer.weight.shape) / math.sqrt(layer.weight[0].numel()))
    learner = HebbianLearner(network, rule, lr=0.02, step=StepSetting(normalise=rule in NORMALISED))
    for step in range(50):
        learner.observe(0.3 * waves(5 * 2 * 8 * 8, 0.37 + 0.01 * step).reshape(5, 2, 8, 8))
        learner.step()
    found = {}
    for learnt in learner.layers:
        weight = learnt.module.weight.detach().flatten()
        found[learnt.name] = [float(weight @ waves(len(weight), pace)) for pace in (0.3, 2.1)]
    return found


def waves(count: int, pace: float) -> Tensor:
    """Numbers that look random and are the same everywhere."""
    return torch.sin(pace * torch.arange(1, count + 1, dtype=torch.float64) ** 1.3) * 1.5


@pytest.mark.parametrize("rule", sorted(RULES))
def test_numbers_are_kept(rule: str) -> None:
    stored = json.loads(STORED.read_text())
    assert rule in stored, f"store them: python -m tests.fasthebb.test_numbers {rule}"
    for name, values in projections(rule).items():
        assert values == pytest.approx(stored[rule][name], rel=1e-9, abs=1e-9), name


if __name__ == "__main__":
    stored = json.loads(STORED.read_text()) | {rule: projections(rule) for rule in sys.argv[1:] or RULES}
    STORED.write_text(json.dumps({rule: stored[rule] for rule in sorted(RULES)}, indent=1) + "\n")
