"""Every rule on 1, 2 and 4 processes, and in micro-batches: weights, moments and batch norm are the same."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from fasthebb.learner import HebbianLearner
from fasthebb.nets.networks import RelativeBatchNorm1d, RelativeBatchNorm2d
from fasthebb.settings import RULES, Execution, StepSetting
from fasthebb.teacher import Teacher
from fasthebb_cli.compute import processes
from fasthebb_cli.compute.batch_norm import share_batch_norm
from tests.many import SIZES, sums_told, together

BATCHES = (9, 6, 3)  # images in a batch; in the last one of four processes has none
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
    """The state of the network and of the learner after some steps on fixed images."""
    made = network(dtype)
    learner = HebbianLearner(
        share_batch_norm(made), rule, lr=0.02, step=StepSetting(normalise=rule in NORMALISED),
        teacher=Teacher(3) if teacher else None,
        execution=Execution(processes=processes.group(), micro_batch=micro_batch),
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
            "long": after(rule, 9, torch.float64),
            "short": after(rule, 1, torch.float32),
            "taught": after(rule, 3, torch.float64, teacher=True),
            "micro": after(rule, 3, torch.float64, micro_batch=2),
        }
        for rule in RULES
    }


@cache
def alone() -> dict[str, dict[str, State]]:
    return every_rule()


@cache
def shared(size: int) -> list[dict[str, dict[str, State]]]:
    return together("tests.fasthebb.test_many:every_rule", size)


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("size", SIZES)
def test_processes_make_the_step_of_one(size: int, rule: str) -> None:
    for found in shared(size):
        same(found[rule]["short"], alone()[rule]["short"], 1e-5)
        same(found[rule]["long"], alone()[rule]["long"], 1e-8)
        same(found[rule]["taught"], alone()[rule]["taught"], 1e-8)
        same(found[rule]["micro"], alone()[rule]["micro"], 1e-8)


def events_of_a_step() -> list[str]:
    """What happens in a step, in order."""
    made = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False))
    learner = HebbianLearner(made, "hpca", lr=0.1, execution=Execution(processes=processes.group()))
    events: list[str] = []
    for name, layer in made.named_children():
        layer.register_forward_pre_hook(lambda _, x, name=name: events.append(f"layer {name}"))
    sums_told(events)
    learner.observe(torch.ones(2, 4))
    learner.step()
    return events


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_sums_travel_while_the_next_layer_works() -> None:
    """A layer's numerator and denominator travel in one buffer. The step waits for them after the last layer."""
    expected = ["layer 0", "send 25", "layer 1", "send 18", "wait", "wait"]
    assert together("tests.fasthebb.test_many:events_of_a_step", 2) == [expected] * 2


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("size", [1, 4])
def test_a_batch_in_parts_is_the_whole_batch(rule: str, size: int) -> None:
    for teacher in (False, True):
        whole = after(rule, 5, torch.float64, teacher=teacher)
        same(after(rule, 5, torch.float64, micro_batch=size, teacher=teacher), whole, 1e-10)


def test_images_matter() -> None:
    """The comparisons above would also pass if no weight ever changed."""
    before = network(torch.float64).state_dict()["0.weight"]
    assert not torch.allclose(after("hpca", 5, torch.float64)["0.weight"], before, rtol=1e-2)


def same(found: State, wanted: State, tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        # the mean of normalised values of size 1 is 0 but for rounding, which is relative to their size
        scale = max(float(value.double().abs().max()), 0.1)
        difference = float((found[name].double() - value.double()).abs().max())
        assert difference <= tolerance * scale, f"{name}: {difference / scale:.1e}"
