"""The learner on small networks of the papers' form: the weights it makes, its statistics, what it leaves behind."""

import copy
import io
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fasthebb.learner import HebbianLearner
from fasthebb.settings import RULES
from tests import reference

RULE_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("hpca", {"denominator": "patches"}),
    ("hpca", {"denominator": "power", "damping": 0.02}),
    ("swta", {"temperature": 0.05}),
]
LEARNING = ["conv1.0", "conv2.0", "fc3.1"]


def network(*, bias: bool = False) -> nn.Sequential:
    """A small conv6: conv -> ReLU -> pool -> batch norm, then a fully connected layer and a classifier."""
    torch.manual_seed(0)
    conv1 = nn.Sequential(nn.Conv2d(2, 4, 3, bias=bias), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(4))
    conv2 = nn.Sequential(nn.Conv2d(4, 5, 2, bias=bias), nn.ReLU(), nn.BatchNorm2d(5))
    fc3 = nn.Sequential(nn.Flatten(), nn.Linear(20, 7, bias=bias), nn.ReLU(), nn.BatchNorm1d(7))
    classifier = nn.Sequential(nn.Dropout(0.5), nn.Linear(7, 3))
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=conv1, conv2=conv2, fc3=fc3, classifier=classifier)
    return nn.Sequential(layers).double()


def batches(count: int, *, samples: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(samples, 2, 8, 8, generator=generator, dtype=torch.float64) for _ in range(count)]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def pixel_learner(weight: list[list[float]], rule: str, **options: Any) -> tuple[nn.Linear, HebbianLearner]:
    """One linear layer with given weights."""
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    return layer, HebbianLearner(nn.Sequential(layer), RULES[rule].with_options(**options), lr=0.1)


def step_by_reference(model: nn.Sequential, images: Tensor, rule: str, options: dict[str, Any], lr: float) -> None:
    """One step of the learning layers, computed by the naive loops; all layers learn from the same forward pass."""
    x, updates = images, {}
    with torch.no_grad():
        for name, module in model.named_modules():
            if list(module.children()) or name.startswith("classifier"):
                continue
            if name in LEARNING:
                assert isinstance(module, nn.Conv2d | nn.Linear)
                updates[module.weight] = reference.update(module, x, rule, **options)
            x = module(x)
            if name in LEARNING and rule == "swta":
                x = torch.stack([x[:, k] / module.get_parameter("weight")[k].norm() for k in range(x.shape[1])], dim=1)
        for weight, update in updates.items():
            weight += lr * update


@pytest.mark.parametrize(("rule", "options"), RULE_OPTIONS)
def test_weights_equal_reference_after_steps(rule: str, options: dict[str, Any]) -> None:
    learning = network()
    wanted, start = copy.deepcopy(learning), weights(learning)
    learner = HebbianLearner(learning, RULES[rule].with_options(**options), lr=0.1, exclude=["classifier*"])
    for images in batches(3):
        learner.observe(images)
        learner.step()
        step_by_reference(wanted, images, rule, options, lr=0.1)
    for name, weight in weights(wanted).items():
        torch.testing.assert_close(learning.get_parameter(name).detach(), weight, rtol=1e-9, atol=1e-11)
        assert (name.removesuffix(".weight") in LEARNING) != torch.equal(weight, start[name])


def test_observing_in_parts_equals_observing_the_whole_batch() -> None:
    whole, parts = network().eval(), network().eval()
    learner, learner_of_parts = (HebbianLearner(model, "hpca", lr=0.1) for model in (whole, parts))
    (images,) = batches(1)
    learner.observe(images)
    learner.step()
    for piece in (images[:1], images[1:3], images[3:]):
        learner_of_parts.observe(piece)
    learner_of_parts.step()
    for name, weight in weights(whole).items():
        torch.testing.assert_close(parts.get_parameter(name).detach(), weight, rtol=1e-10, atol=1e-12)


def test_a_step_forgets_what_was_observed() -> None:
    model = network().eval()
    learner = HebbianLearner(model, "hpca", lr=0.1)
    learner.observe(batches(1)[0])
    learner.step()
    after = weights(model)
    learner.step()
    assert all(torch.equal(model.get_parameter(name), weight) for name, weight in after.items())


@pytest.mark.parametrize(
    ("include", "exclude", "learnt"),
    [
        (["*"], [], {"conv1.0", "conv2.0", "fc3.1", "classifier.1"}),
        (["conv*"], [], {"conv1.0", "conv2.0"}),
        (["*"], ["classifier*", "conv1*"], {"conv2.0", "fc3.1"}),
        (["conv*", "fc3.1"], ["conv?.0"], {"fc3.1"}),
    ],
)
def test_include_and_exclude(include: list[str], exclude: list[str], learnt: set[str]) -> None:
    model = network()
    start = weights(model)
    learner = HebbianLearner(model, "hpca", lr=0.1, include=iter(include), exclude=iter(exclude))
    learner.observe(batches(1)[0])
    learner.step()
    changed = {name for name, weight in start.items() if not torch.equal(weight, model.get_parameter(name))}
    assert changed == {f"{name}.weight" for name in learnt}
    assert set(learner.statistics()) == learnt


def test_layer_lr_scales_the_last_match() -> None:
    changes = []
    for layer_lr in (None, {"conv*": 0.25, "conv1*": 0.5, "fc3.1": 0.0}):
        model = network()
        start = weights(model)
        learner = HebbianLearner(model, "hpca", lr=0.1, layer_lr=layer_lr)
        learner.observe(batches(1)[0])
        learner.step()
        changes.append({name: model.get_parameter(name).detach() - weight for name, weight in start.items()})
    plain, scaled = changes
    for name, factor in {"conv1.0": 0.5, "conv2.0": 0.25, "fc3.1": 0.0, "classifier.1": 1.0}.items():
        torch.testing.assert_close(scaled[f"{name}.weight"], factor * plain[f"{name}.weight"], rtol=1e-9, atol=1e-12)


def test_unknown_names_are_answered_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"unknown rule 'hcpa'; choose one of: hpca, hpca_tanh, "):
        HebbianLearner(network(), "hcpa", lr=0.1)
    with pytest.raises(ValueError, match=r"unknown option 'temperature' of hpca; it accepts: denominator, damping"):
        HebbianLearner(network(), RULES["hpca"].with_options(temperature=1.0), lr=0.1)
    with pytest.raises(ValueError, match=r"unknown option 'y_NGK' of swta; it accepts: temperature"):
        HebbianLearner(network(), RULES["swta"].with_options(y_NGK=1.0), lr=0.1)
    with pytest.raises(ValueError, match="no Conv2d or Linear layer is left to learn"):
        HebbianLearner(network(), "hpca", lr=0.1, include=["conv7*"])


def test_a_refused_learner_leaves_no_hook() -> None:
    model = network()
    with pytest.raises(ValueError, match="unknown option"):
        HebbianLearner(model, RULES["hpca"].with_options(temperature=1.0), lr=0.1)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_projection(bias: bool, channels_last: bool) -> None:
    """While swta learns, a layer outputs x.w / |w| + b. After `finish` its weight vectors have length 1."""
    torch.manual_seed(0)
    conv, fc = nn.Conv2d(2, 4, 3, bias=bias).double(), nn.Linear(16, 5, bias=bias).double()
    (images,) = (images[:, :, :4, :4] for images in batches(1))
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        conv.weight[1] = 0
    plain_conv, plain_fc = copy.deepcopy(conv), copy.deepcopy(fc)
    learner = HebbianLearner(nn.Sequential(conv, nn.Flatten(), fc), "swta", lr=0.1)
    while_learning = learner.observe(images)
    with torch.no_grad():
        for weight in (*plain_conv.weight, *plain_fc.weight):
            weight /= weight.norm() if weight.norm() > 0 else 1
        torch.testing.assert_close(while_learning, plain_fc(plain_conv(images).flatten(1)))
    learner.step()
    learner.finish()
    assert not torch.allclose(conv.weight, plain_conv.weight)
    for layer in (conv, fc):
        norms = layer.weight.detach().flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))


def test_finish_leaves_a_zero_weight_vector() -> None:
    layer, learner = pixel_learner([[3.0, 4.0], [0.0, 0.0]], "swta")
    learner.finish()
    assert layer.weight.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]


def test_hpca_changes_neither_outputs_nor_lengths() -> None:
    model = network().eval()
    plain = copy.deepcopy(model)
    learner = HebbianLearner(model, "hpca", lr=0.1)
    (images,) = batches(1)
    assert torch.equal(learner.observe(images), plain(images))
    learner.finish()
    assert all(torch.equal(model.get_parameter(name), weight) for name, weight in weights(plain).items())


@pytest.mark.parametrize("rule", ["hpca", "swta"])
def test_hooks_are_gone_after_finish(rule: str) -> None:
    model = network().eval()
    learner = HebbianLearner(model, rule, lr=0.1)
    assert sum(len(module._forward_hooks) for module in model.modules()) == 4
    learner.finish()
    assert not any(module._forward_hooks for module in model.modules())
    before = weights(model)
    learner.observe(batches(1)[0])
    learner.step()
    assert all(torch.equal(model.get_parameter(name), weight) for name, weight in before.items())
    assert all(statistics.update == 0 for statistics in learner.statistics().values())


@pytest.mark.parametrize(("rule", "options"), RULE_OPTIONS)
def test_state_dict_continues_bit_identically(rule: str, options: dict[str, Any]) -> None:
    """Momentum and statistics are part of the state: without them the third step and the statistics would differ."""

    def learner_of(model: nn.Module, *, lr: float) -> HebbianLearner:
        def optimizer(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
            return torch.optim.SGD(groups, momentum=0.9)

        setting = RULES[rule].with_options(**options)
        return HebbianLearner(model, setting, lr=lr, exclude=["classifier*"], optimizer=optimizer)

    straight = network()
    learner = learner_of(straight, lr=0.1)
    file = io.BytesIO()
    for number, images in enumerate(batches(4)):
        if number == 2:
            torch.save({"network": straight.state_dict(), "learner": learner.state_dict()}, file)
        learner.observe(images)
        learner.step()
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = network()
    second = learner_of(resumed, lr=0.5)
    resumed.load_state_dict(saved["network"])
    second.load_state_dict(saved["learner"])
    for images in batches(4)[2:]:
        second.observe(images)
        second.step()
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert second.statistics() == learner.statistics()


def test_a_unit_that_never_responds_is_dead() -> None:
    _, learner = pixel_learner([[1.0, 0.0], [-1.0, -1.0], [0.0, 1.0], [0.0, 0.0]], "hpca")
    learner.observe(torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    assert learner.statistics()["0"].dead == 3
    learner.observe(torch.tensor([[1.0, 0.0]]))
    learner.observe(torch.tensor([[0.0, 1.0]]))
    learner.step()
    assert learner.statistics()["0"].dead == 2
    assert learner.statistics()["0"].dead == 4, "each report starts anew"


def test_a_unit_that_never_wins_is_dead() -> None:
    """A unit that always responds less than another is dead. No unit wins a patch of zeros."""
    _, learner = pixel_learner([[1.0, 0.0], [1.0, 0.5], [0.0, 1.0]], "swta")
    learner.observe(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    assert learner.statistics()["0"].dead == 1
    learner.observe(torch.zeros(2, 2))
    assert learner.statistics()["0"].dead == 3


def test_dead_units_are_counted_within_their_group() -> None:
    """The best unit of the second group wins there, although units of the first group respond more."""
    layer = nn.Conv2d(2, 4, 1, groups=2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(4, 1, 1, 1))
    learner = HebbianLearner(nn.Sequential(layer), "swta", lr=0.1)
    learner.observe(torch.tensor([1.0, 0.001]).reshape(1, 2, 1, 1))
    assert learner.statistics()["0"].dead == 2


def test_statistics_of_updates_and_lengths() -> None:
    layer, learner = pixel_learner([[3.0, 4.0], [0.0, 2.0]], "hpca")
    relative = []
    for x in (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])):
        before = layer.weight.detach().clone()
        learner.observe(x)
        learner.step()
        relative.append(float((layer.weight.detach() - before).norm() / before.norm()))
    statistics = learner.statistics()["0"]
    assert statistics.update == pytest.approx(relative[0], rel=1e-5)  # only the first of WATCH steps counts
    norms = layer.weight.detach().norm(dim=1)
    assert (statistics.norm_minimum, statistics.norm_maximum) == (float(norms.min()), float(norms.max()))
    assert statistics.units == 2
    assert learner.statistics()["0"].update == 0


def test_another_optimizer_receives_the_update_as_its_gradient() -> None:
    model, wanted = network(), network()
    learner = HebbianLearner(model, "hpca", lr=0.01, include=["conv1*"], optimizer=torch.optim.Adam)
    layer = wanted.get_submodule("conv1.0")
    assert isinstance(layer, nn.Conv2d)
    adam = torch.optim.Adam([layer.weight], lr=0.01)
    for images in batches(3):
        learner.observe(images)
        learner.step()
        layer.weight.grad = -reference.update(layer, images, "hpca")
        adam.step()
    torch.testing.assert_close(model.get_parameter("conv1.0.weight"), layer.weight, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rule", ["hpca", "swta"])
def test_gradients_are_neither_needed_nor_disturbed(rule: str) -> None:
    """`observe` builds no autograd graph. The user's own forward pass does, and the learner keeps nothing of it."""
    model = network().eval()
    learner = HebbianLearner(model, rule, lr=0.1)
    (images,) = batches(1)
    with torch.enable_grad():
        assert not learner.observe(images).requires_grad
        output = model(images)
    assert all(layer.sums is not None and not layer.sums.numerator.requires_grad for layer in learner.layers)
    output.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert parameter.grad is not None, name
    found = model.get_parameter("conv1.0.weight").grad
    assert found is not None
    if rule == "hpca":
        plain = network().eval()
        plain(images).sum().backward()
        torch.testing.assert_close(found, plain.get_parameter("conv1.0.weight").grad)
    else:  # x.w / |w| does not depend on |w|
        weight = model.get_parameter("conv1.0.weight").detach()
        assert found.abs().max() > 0
        torch.testing.assert_close((found * weight).sum((1, 2, 3)), torch.zeros(4, dtype=torch.float64))


def test_a_layer_that_saw_nothing_takes_no_step() -> None:
    """Not even if its weight has a gradient from elsewhere."""
    model = network()
    learner = HebbianLearner(model, "hpca", lr=0.1)
    unseen = model.get_parameter("fc3.1.weight")
    unseen.grad = torch.ones_like(unseen)
    before = unseen.detach().clone()
    model.get_submodule("conv1")(batches(1)[0])
    learner.step()
    assert torch.equal(unseen, before)
    assert learner.statistics()["fc3.1"].update == 0


def test_a_step_leaves_no_gradient() -> None:
    """It would take the memory of a second copy of the weights, and the next optimizer would apply it."""
    model = network()
    learner = HebbianLearner(model, "hpca", lr=0.1)
    learner.observe(batches(1)[0])
    learner.step()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rates_may_be_scheduled_on_the_optimizer() -> None:
    model = network()
    learner = HebbianLearner(model, "hpca", lr=0.1)
    start = weights(model)
    for group in learner.optimizer.param_groups:
        group["lr"] = 0.0
    learner.observe(batches(1)[0])
    learner.step()
    assert all(torch.equal(model.get_parameter(name), weight) for name, weight in start.items())


@pytest.mark.parametrize(("rule", "options"), RULE_OPTIONS)
def test_autocast_rounds_the_forward_product_alone(rule: str, options: dict[str, Any]) -> None:
    """Under bf16 the sums and weights stay float32. Only the responses are rounded, to 8 bits."""
    torch.manual_seed(0)
    exact = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.Flatten(), nn.Linear(256, 40, bias=False))
    rounded = copy.deepcopy(exact)
    images = torch.rand(8, 3, 6, 6)
    start = weights(exact)
    for model, enabled in ((exact, False), (rounded, True)):
        learner = HebbianLearner(model, RULES[rule].with_options(**options), lr=0.1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = learner.observe(images)
        learner.step()
        assert output.dtype == (torch.bfloat16 if enabled else torch.float32)
    for name, weight in weights(exact).items():
        found = rounded.get_parameter(name).detach()
        assert found.dtype == torch.float32
        assert not torch.equal(found, weight), "autocast was off"
        assert (found - weight).norm() < 0.05 * (weight - start[name]).norm()


@pytest.mark.parametrize(("rule", "options"), RULE_OPTIONS)
def test_learning_from_a_batch_is_to_observe_it_and_to_step(rule: str, options: dict[str, Any]) -> None:
    models = [network(), network()]
    setting = RULES[rule].with_options(**options)
    at_once, in_two = (HebbianLearner(each, setting, lr=0.1, exclude=["classifier*"]) for each in models)
    for images in batches(10):  # more than WATCH, so that two steps count for the statistics
        at_once.learn(images)
        in_two.observe(images)
        in_two.step()
    assert at_once.statistics() == in_two.statistics()
    for name, weight in weights(models[0]).items():
        assert torch.equal(weight, models[1].get_parameter(name))
    assert not torch.equal(weights(models[0])["conv1.0.weight"], weights(network())["conv1.0.weight"])
