"""The half of the learner that changes no weight: images -> the gradient of each layer."""

from typing import Any

import pytest
import torch
from torch import nn

from fasthebb.gradients import Gradients
from fasthebb.layer import choose_layers
from fasthebb.settings import RULES, Execution
from tests import reference
from tests.fasthebb.test_learner import RULE_OPTIONS, batches, network, weights


def gradients_of(model: nn.Module, rule: str, *, execution: Execution | None = None, **options: Any) -> Gradients:
    setting = RULES[rule].with_options(**options)
    layers, _ = choose_layers(model, setting, include=["*"], exclude=["classifier*"])
    return Gradients(model, layers, setting, teacher=None, execution=execution or Execution())


@pytest.mark.parametrize(("rule", "options"), RULE_OPTIONS)
def test_the_first_layers_gradient_is_the_naive_update_with_its_sign_changed(
    rule: str, options: dict[str, Any]
) -> None:
    model = network()
    before = weights(model)
    (images,) = batches(1)
    first = model.get_submodule("conv1.0")
    assert isinstance(first, nn.Conv2d)
    found, *others = gradients_of(model, rule, **options)(images)
    assert found is not None
    torch.testing.assert_close(found, -reference.update(first, images, rule, **options), rtol=1e-9, atol=1e-11)
    assert all(gradient is not None for gradient in others)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())


def test_gradients_are_taken_once() -> None:
    gradients = gradients_of(network(), "hpca")
    assert not gradients.pending
    gradients.observe(batches(1)[0])
    assert gradients.pending
    assert [gradient is None for gradient in gradients.take()] == [False] * 3
    assert not gradients.pending
    assert gradients.take() == [None] * 3


def test_paused_or_without_hooks_nothing_is_observed() -> None:
    gradients = gradients_of(network(), "hpca")
    gradients.paused = True
    assert gradients(batches(1)[0]) == [None] * 3
    gradients.paused = False
    gradients.remove_hooks()
    assert gradients(batches(1)[0]) == [None] * 3


@pytest.mark.parametrize("size", [1, 4, 6, 100])
def test_micro_batches_call_the_network_with_so_many_images(size: int) -> None:
    model = network().eval()
    seen: list[int] = []
    model.get_submodule("conv1.0").register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    (images,) = batches(1)
    whole = gradients_of(network().eval(), "hpca")(images)
    found = gradients_of(model, "hpca", execution=Execution(micro_batch=size))(images)
    assert max(seen) == min(size, 6)
    assert sum(seen) == 6
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_options_add_up() -> None:
    setting = RULES["hpca"].with_options(damping=2.0).with_options(denominator="patches")
    assert setting.options == {"damping": 2.0, "denominator": "patches"}
    assert RULES["hpca"].options == {}
