"""The learner apart from its rule: steps, options by layer, teachers, layer by layer, running moments, memory."""

import copy
import shutil
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._dynamo.utils
from torch import Tensor, nn

from fasthebb import engine, tiles
from fasthebb.learner import HebbianLearner
from fasthebb.responses import RESPONSES, Moments
from fasthebb.rules import gha, hebbian_classifier
from fasthebb.settings import MOMENTUM, RULES, Execution, RuleSetting, StepSetting
from fasthebb.teacher import Teacher, taught, teacher_signal
from tests import reference
from tests.fasthebb.test_learner import batches, network, weights


def learnt(
    rule: str | RuleSetting, *, steps: int = 1, labels: Tensor | None = None, **keywords: Any
) -> dict[str, Tensor]:
    model = network()
    learner = HebbianLearner(model, rule, lr=0.1, exclude=["classifier*"], **keywords)
    for images in batches(steps):
        learner.observe(images, labels)
        learner.step()
    return weights(model)


def difference(found: dict[str, Tensor], name: str) -> Tensor:
    """How far a layer's weights moved from the start."""
    return found[name] - weights(network())[name]


NAMES = {"conv1.0.weight": 18, "conv2.0.weight": 16, "fc3.1.weight": 20}  # layer -> number of inputs of a unit


def test_normalised_weights_have_length_1() -> None:
    found = learnt("hebb", step=StepSetting(normalise=True), steps=2)
    for name in NAMES:
        torch.testing.assert_close(found[name].flatten(1).norm(dim=1), torch.ones(len(found[name])).double())


def test_the_rate_is_divided_by_the_root_of_the_inputs() -> None:
    plain, scaled = learnt("hpca"), learnt("hpca", step=StepSetting(per_input=True))
    for name, inputs in NAMES.items():
        torch.testing.assert_close(difference(scaled, name) * inputs**0.5, difference(plain, name))


def test_the_rate_depends_on_the_distance_of_the_length_from_1() -> None:
    plain, scaled = learnt("softhebb"), learnt("softhebb", step=StepSetting(norm_power=0.5))
    start = weights(network())
    for name in NAMES:
        distance = (start[name].flatten(1).norm(dim=1) - 1).abs().sqrt()
        wanted = difference(plain, name).flatten(1) * distance.unsqueeze(1)
        torch.testing.assert_close(difference(scaled, name).flatten(1), wanted)


def test_options_by_layer() -> None:
    options = {"conv*": {"temperature": 0.5}, "fc*": {"temperature": 0.1}}
    mixed = learnt(replace(RULES["swta"], layer_options=options))
    assert torch.equal(mixed["conv1.0.weight"], learnt(RULES["swta"].with_options(temperature=0.5))["conv1.0.weight"])
    with pytest.raises(ValueError, match="unknown option 'heat' of swta"):
        learnt(replace(RULES["swta"], layer_options={"conv2.0": {"heat": 1}}))


@pytest.mark.parametrize("name", ["Adam", "RMSprop", "Adagrad"])
def test_any_optimizer_applies_the_update(name: str) -> None:
    found = learnt("hpca", optimizer=getattr(torch.optim, name), steps=2)
    assert all(difference(found, layer).abs().max() > 0 for layer in NAMES)


def test_layer_by_layer_runs_no_further_than_the_layer_that_learns() -> None:
    model = network()
    learner = HebbianLearner(model, "hpca", lr=0.1, exclude=["classifier*"])
    seen: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: seen.append(name))
    learner.learn_only("conv2.0")
    (images,) = batches(1)
    learner.observe(images)
    learner.step()
    start = weights(network())
    moved = {name for name, weight in weights(model).items() if not torch.equal(weight, start[name])}
    assert moved == {"conv2.0.weight"}
    assert "conv1.0" in seen
    assert "conv2.2" in seen, "the layer's batch norm has its statistics"
    assert "fc3" not in seen
    seen.clear()
    learner.learn_only(None)
    learner.observe(images)
    assert "fc3.3" in seen
    assert "classifier" not in seen, "nothing learns there"


@pytest.mark.parametrize("rule", ["bcm", "hpca_adaptive"])
def test_running_moments_include_the_batch_and_survive_a_checkpoint(rule: str) -> None:
    model = network()
    learner = HebbianLearner(model, rule, lr=0.01, include=["conv1.0"])
    seen: list[Moments] = []
    for images in batches(3):
        dot = nn.functional.conv2d(images, model.get_parameter("conv1.0.weight").detach()).flatten(2)
        y_NGK = dot.transpose(1, 2).reshape(-1, 1, 4)
        seen.append(Moments.of(y_NGK.relu() if rule == "bcm" else y_NGK))
        learner.observe(images)
        learner.step()
    wanted = seen[0].mean_square
    for moments in seen[1:]:
        wanted = (1 - MOMENTUM) * wanted + MOMENTUM * moments.mean_square
    kept = learner.layers[0].moments
    assert kept is not None
    torch.testing.assert_close(kept.mean_square, wanted)

    other = copy.deepcopy(network())
    other.load_state_dict(model.state_dict())
    resumed = HebbianLearner(other, rule, lr=0.01, include=["conv1.0"])
    resumed.load_state_dict(learner.state_dict())
    for each in (learner, resumed):
        each.observe(batches(1)[0])
        each.step()
    assert torch.equal(model.get_parameter("conv1.0.weight"), other.get_parameter("conv1.0.weight"))


def test_a_teacher_signal_frees_the_first_units_and_assigns_the_others_in_turn() -> None:
    signal = teacher_signal(torch.tensor([0, 2, -1]), classes=3, units=8, assigned=8).squeeze()
    assert signal.tolist() == [
        [1, 1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 1],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ]
    assert teacher_signal(torch.tensor([1]), classes=3, units=8, assigned=0).min() == 1
    assert teacher_signal(torch.tensor([1]), classes=3, units=8, assigned=5).squeeze().tolist() == [
        1,
        1,
        1,
        1,
        1,
        0,
        1,
        0,
    ]


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"bcm", "hpca_adaptive"}))
def test_a_teacher_multiplies_response_gate_and_recombination(rule: str) -> None:
    """Units of other classes learn nothing from a patch. Units of its class compete with each other."""
    model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 6, bias=False)).double()
    start = weights(model)
    learner = HebbianLearner(model, rule, lr=0.1, teacher=Teacher(3))
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    learner.observe(x, torch.ones(4, dtype=torch.long))
    learner.step()
    moved = (weights(model)["1.weight"] - start["1.weight"]).abs().amax(1)
    if rule not in ("ica", "hica"):  # they move towards their own weights whatever the patch
        assert moved[[0, 2, 3, 5]].max() == 0
    assert moved[[1, 4]].max() > 0
    assert (weights(model)["0.weight"] != start["0.weight"]).any()


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("swta", {"temperature": 0.5}),
        ("swta", {}),
        ("kwta", {"k": 3}),
        ("kwta", {"k": 1}),
        ("hpca", {"denominator": "patches"}),
    ],
)
def test_taught_rules_agree_with_their_naive_form(rule: str, options: dict[str, Any]) -> None:
    """Six units, two for each class: so only two compete, fewer than k = 3."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(6, 6, bias=False, dtype=torch.float64)
    x = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    teacher_NGK = teacher_signal(torch.arange(20) % 3, 3, 6, assigned=6).double()
    setting = RULES[rule]
    with torch.no_grad():
        y_NGK = RESPONSES[setting.response](engine.pre_activation(layer, x, layer(x)))
        found = engine.sums(layer, x, taught(setting.rule, y_NGK, teacher_NGK, **options)).gradient_(layer.weight).neg()
    naive = {"swta": reference.taught_swta, "kwta": reference.taught_kwta, "hpca": reference.taught_hpca}[rule]
    own = {name: value for name, value in options.items() if name != "denominator"}
    torch.testing.assert_close(found, naive(list(x), layer.weight.detach(), teacher_NGK[:, 0], **own))


def test_a_layer_with_fewer_units_than_classes_is_named() -> None:
    model = nn.Sequential(OrderedDict(a=nn.Linear(4, 2), b=nn.Linear(2, 5), c=nn.Linear(5, 9), d=nn.Linear(9, 7)))
    assert HebbianLearner(model, "hpca", lr=0.1, teacher=Teacher(6, {"d": 3})).without_teacher == ["b", "d"]
    assert HebbianLearner(model, "hpca", lr=0.1).without_teacher == []


def test_a_teacher_leaves_the_networks_first_layer_alone_and_not_the_first_that_learns() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 4, bias=False)).double()
    learner = HebbianLearner(model, "gha", lr=0.1, include=["1"], teacher=Teacher(4))
    before = weights(model)["1.weight"]
    learner.observe(torch.ones(2, 3, dtype=torch.float64), torch.tensor([2, 2]))
    learner.step()
    moved = (weights(model)["1.weight"] - before).abs().amax(1)
    assert (moved > 0).tolist() == [False, False, True, False]


def test_running_variance_is_that_within_batches() -> None:
    """The drift of the mean from batch to batch does not count as variance."""
    first, second = (Moments.of(torch.tensor([[[m - 1.0]], [[m + 1.0]]])) for m in (-3.0, 3.0))
    first.move_to_(second, 0.1)
    assert (float(first.mean), float(first.variance)) == pytest.approx((-2.4, 1.0))
    assert float(first.mean_square) == pytest.approx(10.0)


def test_labels_and_a_teacher_go_together() -> None:
    with pytest.raises(ValueError, match="labels and a teacher go together"):
        learnt("hpca", labels=torch.zeros(6, dtype=torch.long))
    with pytest.raises(ValueError, match="labels and a teacher go together"):
        learnt("hpca", teacher=Teacher(3))


def test_a_hebbian_classifier_holds_the_mean_of_each_class() -> None:
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(30) % 3
    layer = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    teacher = teacher_signal(labels, 3, 3, assigned=3).double()
    update = engine.sums(layer, x, hebbian_classifier(teacher)).gradient_(layer.weight).neg()
    means = torch.stack([x[labels == k].mean(0) for k in range(3)])
    torch.testing.assert_close(layer.weight.detach() + update, means)


def test_a_users_own_rule_is_a_function() -> None:
    own = learnt(RuleSetting(gha, "dot"))
    assert all(torch.equal(own[name], learnt("gha")[name]) for name in NAMES)


def test_a_chunks_responses_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most as many numbers as the tile size says, but at least one image. A linear layer is not divided."""
    monkeypatch.setattr(tiles, "CPU", replace(tiles.CPU, chunk=3 * 5 * 36))
    conv, x = nn.Conv2d(2, 5, 3), torch.randn(8, 2, 8, 8)
    assert [len(part) for part, _ in engine.chunks(conv, x, conv(x))] == [3, 3, 2]
    monkeypatch.setattr(tiles, "CPU", replace(tiles.CPU, chunk=1))
    assert [len(part) for part, _ in engine.chunks(conv, x, conv(x))] == [1] * 8
    linear = nn.Linear(4, 5)
    assert [len(part) for part, _ in engine.chunks(linear, x[..., :4], linear(x[..., :4]))] == [8]


def test_a_linear_layers_numerator_stays_in_the_memory_of_the_step_before() -> None:
    """For a wide layer that is tens of megabytes, which the system would have to allocate and clear in every step."""
    torch.manual_seed(0)
    layer = nn.Linear(30, 20, bias=False)
    learner = HebbianLearner(nn.Sequential(layer), "hpca", lr=0.1)
    held: list[Tensor] = []
    for _ in range(3):
        learner.observe(torch.randn(8, 30))
        sums = learner.layers[0].sums
        assert sums is not None
        held.append(sums.numerator)  # keeps the memory in use, so that no other tensor gets its address
        learner.step()
    assert len({numerator.data_ptr() for numerator in held}) == 1


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("taught", [False, True])
def test_chunks_of_a_batch_add_up_to_it(rule: str, taught: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image in each chunk, with its own label, gives the same as the whole batch at once."""
    labels = torch.tensor([0, 1, 2, 0, 1, 2]) if taught else None
    found = []
    for chunk in (1, 1 << 30):
        monkeypatch.setattr(tiles, "CPU", replace(tiles.CPU, chunk=chunk))
        found.append(learnt(rule, labels=labels, teacher=Teacher(3) if taught else None, steps=2))
    for name in NAMES:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-9, atol=1e-11)
        assert difference(found[0], name).abs().max() > 0


def test_how_many_units_a_teacher_assigns_depends_on_the_layer() -> None:
    """Three of conv2's five units are assigned, one for each class. The first two learn from all classes."""
    labels = torch.zeros(6, dtype=torch.long)
    moved = [
        difference(learnt("hpca", labels=labels, teacher=Teacher(3, assigned)), "conv2.0.weight")
        .flatten(1)
        .abs()
        .amax(1)
        for assigned in ({}, {"conv2": 3}, {"conv2": 0})
    ]
    assert [(units > 0).tolist() for units in moved[:2]] == [[True, True, True, False, False]] * 2
    assert (moved[2] > 0).all()


def test_a_module_that_occurs_twice_in_a_sequence_runs_twice() -> None:
    torch.manual_seed(0)
    halve = nn.Linear(3, 3, bias=False).double()
    model = nn.Sequential(nn.Linear(3, 3, bias=False).double(), halve, halve)
    x = torch.randn(4, 3, dtype=torch.float64)
    wanted = model(x).detach()
    learner = HebbianLearner(model, "hpca", lr=0.1, include=["1"])
    torch.testing.assert_close(learner.observe(x), wanted)


@pytest.mark.parametrize("rule", ["swta", "hwta", "kwta", "kmeans", "softhebb"])
def test_layers_that_a_rule_cannot_train_are_named(rule: str) -> None:
    """The unit of a depthwise convolution is alone in its group and cannot compete. A ConvTranspose2d is no Conv2d."""
    model = nn.Sequential(
        OrderedDict(
            full=nn.Conv2d(2, 4, 3),
            depthwise=nn.Conv2d(4, 4, 3, groups=4),
            up=nn.ConvTranspose2d(4, 2, 3),
            norm=nn.BatchNorm2d(2),
        )
    )
    learner = HebbianLearner(model, rule, lr=0.1)
    assert [layer.name for layer in learner.layers] == ["full"]
    assert list(learner.untrainable) == ["depthwise", "up"]
    assert "one unit a group" in learner.untrainable["depthwise"]
    assert "ConvTranspose2d" in learner.untrainable["up"]
    before = weights(model)["depthwise.weight"]
    learner.observe(torch.randn(2, 2, 8, 8))
    learner.step()
    assert torch.equal(weights(model)["depthwise.weight"], before)
    assert list(HebbianLearner(model, "hpca", lr=0.1, exclude=["up"]).untrainable) == []


def test_a_layer_that_is_never_called_takes_no_step() -> None:
    """Attention uses the weights of its output layer without calling the layer."""
    model = nn.MultiheadAttention(4, 2)
    learner = HebbianLearner(model, "hpca", lr=0.1)
    assert list(learner.untrainable) == [""]  # weights of queries, keys and values are in the module itself
    model(*[torch.randn(3, 1, 4)] * 3)
    learner.step()
    assert learner.statistics()["out_proj"].steps == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("hpca", {}),
        *(
            pytest.param(rule, options, marks=pytest.mark.marathon)
            for rule, options in {
                "swta": {}, "softhebb": {}, "bcm": {}, "hpca_tanh": {"teacher": Teacher(3, {"conv*": 3})},
            }.items()
        ),
    ],
)  # fmt: skip
def test_compiled_rules_learn_the_same(rule: str, options: dict[str, Any]) -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2]) if "teacher" in options else None
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    eager, compiled = (
        learnt(rule, labels=labels, execution=Execution(compile=flag), **options) for flag in (False, True)
    )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs
    for name, weight in eager.items():
        torch.testing.assert_close(compiled[name], weight, rtol=1e-5, atol=1e-7)
