"""A recorded step stays right, as steps with the same key run the same operations; tested without a GPU."""

import pytest
import torch

from fasthebb import learner as learner_module
from fasthebb.learner import HebbianLearner
from fasthebb.settings import RULES, Execution, StepSetting
from fasthebb.teacher import Teacher
from tests.checked import Checked
from tests.fasthebb.test_many import BATCHES, NORMALISED, network, same

FEW = ("hpca", "swta", "bcm")


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> type[Checked]:
    Checked.recorded = Checked.replayed = 0
    monkeypatch.setattr(learner_module, "Replay", Checked)
    return Checked


@pytest.mark.slow
@pytest.mark.parametrize("taught", [False, True], ids=["free", "taught"])
@pytest.mark.parametrize(
    "rule", [*FEW, *(pytest.param(rule, marks=pytest.mark.slow) for rule in sorted(RULES) if rule not in FEW)]
)
def test_steps_with_the_same_key_run_the_same_operations(rule: str, taught: bool, checked: type[Checked]) -> None:
    """Although rates change, batches have three lengths, and only some steps count for the statistics."""
    models = [network(torch.float64).train() for _ in range(2)]
    learners = [
        HebbianLearner(
            model, rule, lr=0.02, step=StepSetting(normalise=rule in NORMALISED),
            teacher=Teacher(3) if taught else None, execution=Execution(replay=replay),
        )
        for model, replay in zip(models, (True, False), strict=True)
    ]  # fmt: skip
    for step in range(50):
        total = BATCHES[step % 3]
        images = torch.randn(total, 2, 8, 8, generator=torch.Generator().manual_seed(step)).double()
        for learner in learners:
            learner.optimizer.param_groups[0]["lr"] = 0.02 / (1 + step)
            learner.learn(images, torch.arange(total) % 3 if taught else None)
    assert checked.recorded >= 6
    assert checked.replayed > 30
    same(models[0].state_dict(), models[1].state_dict(), 0)
    assert learners[0].statistics() == learners[1].statistics()


def test_so_do_layers_that_learn_one_after_the_other(checked: type[Checked]) -> None:
    model = network(torch.float64).train()
    learner = HebbianLearner(model, "hpca", lr=0.02, execution=Execution(replay=True))
    for layer in learner.layers:
        learner.learn_only(layer.name)
        for _ in range(12):
            learner.learn(torch.randn(9, 2, 8, 8).double())
    assert checked.replayed > 30


def test_a_step_with_a_part_observed_before_is_not_replayed(checked: type[Checked]) -> None:
    model = network(torch.float64).train()
    learner = HebbianLearner(model, "oja", lr=0.02, execution=Execution(replay=True))
    images = torch.randn(9, 2, 8, 8).double()
    for _ in range(4):
        learner.learn(images)
    before = checked.replayed
    learner.observe(images)
    learner.learn(images)
    assert checked.replayed == before
