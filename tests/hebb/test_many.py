"""Every rule on 1, 2 and 4 processes: the same weights, moments and batch norm, whatever part of a batch each has."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fasthebb_cli import processes
from fasthebb_cli.hebb.learner import HebbianLearner
from fasthebb_cli.hebb.settings import RULES, StepSetting
from fasthebb_cli.nets.batch_norm import share_batch_norm
from fasthebb_cli.nets.networks import RelativeBatchNorm1d, RelativeBatchNorm2d
from tests.many import sums_told, together

BATCHES = (9, 6, 3)  # images; of the last, one of four processes has none
NORMALISED = {"hebb", "bcm", "ica", "hica"}
State = dict[str, Tensor]


def network(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        nn.Conv2d(2, 6, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(6),
        nn.Conv2d(6, 8, 2, stride=2, padding=1, groups=2, bias=False), nn.ReLU(), RelativeBatchNorm2d(8), nn.Flatten(),
        nn.Linear(32, 40, bias=False), nn.ReLU(), RelativeBatchNorm1d(40), nn.Unflatten(1, (10, 2, 2)),
        nn.Conv2d(10, 6, 2, bias=False),  # covers its input
    ]  # fmt: skip
    return nn.Sequential(*layers).to(dtype).to(memory_format=torch.channels_last)


def after(rule: str, steps: int, dtype: torch.dtype, micro_batch: int | None = None, teacher: bool = False) -> State:
    """The network's state and what the learner remembers after some steps on fixed images."""
    made = network(dtype)
    learner = HebbianLearner(
        share_batch_norm(made), rule, lr=0.02, step=StepSetting(normalise=rule in NORMALISED),
        processes=processes.group(), micro_batch=micro_batch, classes=3 if teacher else None,
    )  # fmt: skip
    made.train()
    for step in range(steps):
        total = BATCHES[step % len(BATCHES)]
        part = processes.part_of(total)
        images = torch.randn(total, 2, 8, 8, generator=torch.Generator().manual_seed(step)).to(dtype)[part]
        learner.observe(images, torch.arange(total)[part] % 3 if teacher else None)
        learner.step()
    state = {name: value.clone() for name, value in made.state_dict().items()}
    for name, layer in learner.state_dict()["layers"].items():
        state[f"{name}.alive"] = layer["alive"]
        state |= {f"{name}.{key}": value for key, value in (layer["moments"] or {}).items()}
    return state


def every_rule() -> dict[str, dict[str, State]]:
    return {
        rule: {
            "long": after(rule, 50, torch.float64),
            "short": after(rule, 1, torch.float32),
            "taught": after(rule, 3, torch.float64, teacher=True),
            "micro": after(rule, 3, torch.float64, micro_batch=2),
        }
        for rule in RULES
    }


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, State]]:
    torch.set_num_threads(1)
    return every_rule()


@pytest.fixture(scope="module", params=[2, 4])
def shared(request: pytest.FixtureRequest) -> Any:
    return together("tests.hebb.test_many:every_rule", request.param)


@pytest.mark.slow
@pytest.mark.xdist_group("every rule")
@pytest.mark.parametrize("rule", sorted(RULES))
def test_processes_make_the_step_of_one(rule: str, alone: Any, shared: Any) -> None:
    for found in shared:
        same(found[rule]["short"], alone[rule]["short"], 1e-5)
        same(found[rule]["long"], alone[rule]["long"], 1e-8)
        same(found[rule]["taught"], alone[rule]["taught"], 1e-8)
        same(found[rule]["micro"], alone[rule]["micro"], 1e-8)


def way_through() -> list[str]:
    """What happens in a step, one after the other."""
    made = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False))
    learner = HebbianLearner(made, "hpca", lr=0.1, processes=processes.group())
    events: list[str] = []
    for name, layer in made.named_children():
        layer.register_forward_pre_hook(lambda _, x, name=name: events.append(f"layer {name}"))
    sums_told(events)
    learner.observe(torch.ones(2, 4))
    learner.step()
    return events


@pytest.mark.slow
def test_sums_travel_while_the_next_layer_works() -> None:
    """A layer's numerator and denominator in one buffer; they are waited for when all layers are through."""
    expected = ["layer 0", "send 25", "layer 1", "send 18", "wait", "wait"]
    assert together("tests.hebb.test_many:way_through", 2) == [expected] * 2


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("size", [1, 4])
def test_a_batch_in_parts_is_the_whole_batch(rule: str, size: int) -> None:
    for teacher in (False, True):
        whole = after(rule, 5, torch.float64, teacher=teacher)
        same(after(rule, 5, torch.float64, micro_batch=size, teacher=teacher), whole, 1e-10)


def test_images_matter() -> None:
    """What the comparisons above would miss if the network stood still."""
    before = network(torch.float64).state_dict()["0.weight"]
    assert not torch.allclose(after("hpca", 5, torch.float64)["0.weight"], before, rtol=1e-2)


def same(found: State, wanted: State, tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = max(float(value.double().abs().max()), 0.01)  # the mean of what is normalised is rounding alone
        difference = float((found[name].double() - value.double()).abs().max())
        assert difference <= tolerance * scale, f"{name}: {difference / scale:.1e}"
