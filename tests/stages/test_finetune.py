"""Fine-tuning: frozen layers do not change by a bit, few labels get enough steps, and each protocol."""

import copy
import dataclasses
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.utils
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from fasthebb.model_file import load_model
from fasthebb.readout.candidates import balanced
from fasthebb_cli.compute.device import set_up
from fasthebb_cli.data.dataset import load_dataset
from fasthebb_cli.settings.finetune import FinetuneConfig
from fasthebb_cli.settings.load import with_defaults
from fasthebb_cli.stages import Context, Task
from fasthebb_cli.stages.finetune import finetune
from fasthebb_cli.stages.finetune.layers import layers_of, parameter_groups
from fasthebb_cli.stages.finetune.loss import loss_and_hits
from fasthebb_cli.stages.optimizers import backprop_optimizer
from tests.conftest import Ran, loaded


def ended(task: Task, epoch: int) -> dict[str, Any]:
    """The metrics of an epoch, after its validation."""
    for _ in task.validate(epoch):
        pass
    return task.end_epoch(epoch)


@pytest.mark.slow
def test_few_labels_still_get_200_steps(command: Callable[..., Ran]) -> None:
    ran = command("train", "rule=none", "label_fraction=0.02", "finetune.epochs=null", "--dry-run")
    assert ran.code == 0, ran.err
    command("finetune", "rule=none", "label_fraction=0.02", "finetune.epochs=null")  # 20 labels: an epoch is one step
    assert ran.results("finetune")["epochs"] == 200
    command("finetune", "rule=none", "label_fraction=0.02", "finetune.epochs=3", "seed=1")
    assert [json.loads((d / "results.json").read_text())["epochs"] for d in ran.directories("finetune")] == [200, 3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "moves"), [("frozen", False), ("backprop", True), ("frozen hidden=7", False), ("hebbian", False)]
)
def test_frozen_features_stay_to_the_bit(command: Callable[..., Ran], choice: str, moves: bool) -> None:
    choice, *more = choice.split()
    ran = command("train", f"finetune={choice}", *[f"finetune.{word}" for word in more], "label_fraction=0.2")
    assert ran.code == 0, ran.err
    before, after = (load_file(ran.directories(name)[0] / "model.safetensors") for name in ("pretrain", "finetune"))
    features = [name for name in before if not name.startswith("classifier.")]
    assert all(torch.equal(before[name], after[name]) for name in features) is not moves
    weight = after["classifier.1.0.weight" if more else "classifier.1.weight"]
    assert not torch.equal(before["classifier.1.weight"], weight)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [None, "conv2"])
def test_a_hidden_layer_is_trained_saved_and_built_again(command: Callable[..., Ran], layer: str | None) -> None:
    ran = command("train", "finetune.hidden=7", f"finetune.layer={layer or 'null'}", "label_fraction=0.2")
    assert ran.code == 0, ran.err
    (directory,) = ran.directories("finetune")
    network = load_model(directory)
    sizes = [
        part.weight.shape[0] for part in network.get_submodule("classifier").modules() if isinstance(part, nn.Linear)
    ]
    assert sizes == [7, 10]
    again = command("evaluate", f"init_from={directory}")
    assert again.code == 0, again.err
    scores = [json.loads((path / "results.json").read_text())["top1"] for path in again.directories("evaluate")]
    assert len(scores) == 2
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_the_hebbian_classifier_scores_by_class_means(command: Callable[..., Ran]) -> None:
    """It agrees with the probe's, which takes the rule's step once, over all features."""
    stages = ("stages=[pretrain,finetune,evaluate,probe]", "probe.methods=[hebbian]", "probe.layers=[fc5]")
    ran = command("train", "finetune=hebbian", "finetune.epochs=1", *stages, "label_fraction=0.2")
    assert ran.code == 0, ran.err
    assert ran.results("evaluate")["top1"] == pytest.approx(ran.results("probe")["layers"]["fc5"]["hebbian"])
    assert ran.results("evaluate")["top1"] > 0.4
    weights = load_file(ran.directories("finetune")[0] / "model.safetensors")
    assert not weights["classifier.1.bias"].any()
    torch.testing.assert_close(weights["classifier.1.weight"].norm(dim=1), torch.ones(10))


@pytest.mark.slow
def test_the_hebbian_classifier_learns_the_same_in_parts(command: Callable[..., Ran]) -> None:
    words = ("train", "finetune=hebbian", "finetune.select=best", "label_fraction=0.2")
    assert command(*words).code == 0
    (directory,) = command(*words).directories("finetune")
    whole = load_file(directory / "model.safetensors")
    ran = command(*words, "gpu.micro_batch=10", "force=true")
    assert ran.code == 0, ran.err
    parts = load_file(directory / "model.safetensors")
    torch.testing.assert_close(parts["classifier.1.weight"], whole["classifier.1.weight"], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_fine_tuning_goes_on_from_hidden_and_hebbian_classifiers(command: Callable[..., Ran]) -> None:
    """For the stage after it, each is an ordinary classifier."""
    more = ("+finetune@extra.all=backprop", "stages=[pretrain,finetune,all,evaluate]", "extra.all.epochs=1")
    for words in (("finetune=hebbian",), ("finetune=frozen", "finetune.hidden=7")):
        ran = command("train", *words, *more, "label_fraction=0.2", "force=true")
        assert ran.code == 0, ran.err
    assert len(ran.directories("all")) == 2
    ran = command("train", *words, *more, "extra.all.hidden=8", "label_fraction=0.2")
    assert ran.code == 2
    assert "has a hidden layer of 7 already" in ran.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["finetune.classifier=hebbian"], "finetune.classifier=hebbian gives the features no gradient"),
        (["finetune=hebbian", "finetune.balance=true"], "learns each class by itself; leave balance out"),
        (["finetune=hebbian", "finetune.hidden=5"], "leave out hidden and classifier_epochs"),
        (["finetune.classifier=knn"], "finetune.classifier must be one of backprop, hebbian"),
        (["finetune.hidden=-1"], "finetune.hidden must be at least 0"),
        (["finetune.patience=3"], "set select=best too"),
        (["finetune.patience=0", "finetune.select=best"], "finetune.patience must be at least 1"),
        (["finetune=frozen", "finetune.by_rule=[conv1]"], "features_lr=0 freezes all of them"),
        (["rule=none", "finetune.by_rule=[conv1]"], "rule=none is no Hebbian rule"),
        (["rule.lr=null", "pretrain.lr=0.1", "finetune.by_rule=[conv1]"], "rule.lr has no value"),
        (["finetune.by_rule=[conv1,conv9]"], "is called 'conv9'; there are: conv1.0, conv2.0"),
        (["finetune.by_rule=[classifier]"], "is called 'classifier'; there are: conv1.0, conv2.0"),
        (["finetune.by_rule=[conv1]", "gpu.micro_batch=8"], "leave out gpu.micro_batch"),
        (["finetune.by_rule=[conv1]", "finetune.layer_lr={conv*: 0}"], "finetune.layer_lr keeps conv1.0 still"),
    ],
)
def test_what_does_not_go_together(command: Callable[..., Ran], words: list[str], expected: str) -> None:
    ran = command("train", "pretrain.epochs=1", "label_fraction=0.1", *words)
    assert ran.code == 2
    assert expected in ran.err
    assert ran.err.count("\n") == 1
    assert not list(ran.runs.glob("*-pretrain-*")), "it was found only after pre-training"


def context_around(network: nn.Module, *words: str) -> Context:
    """A cell that trains the network by plain gradient descent on digits."""
    config = loaded(
        "dataset=digits", "gpu=cpu", "finetune=backprop", "finetune.epochs=2", "finetune.lr=0.1",
        "finetune.schedule=constant", "finetune.momentum=0", "finetune.weight_decay=0", "finetune.augment=none",
        "label_fraction=0.3", *words,
    )  # fmt: skip
    dataset = load_dataset(config.dataset, config.seed)
    statistics = torch.full((3,), 0.2), torch.full((3,), 0.4)
    return Context(
        config, "finetune", config.settings["finetune"], dataset, network, set_up(config.gpu), statistics,
        untrained=True, resumed=False,
    )  # fmt: skip


def hybrid_context(*words: str) -> Context:
    """Three linear layers; the middle one learns by Oja's rule."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 12, bias=False), nn.Tanh())
    layers = {"first": first, "middle": nn.Linear(12, 6, bias=False), "classifier": nn.Linear(6, 10)}
    return context_around(
        nn.Sequential(OrderedDict(layers)), "rule=oja", "rule.lr=0.5", "finetune.by_rule=[middle]", *words
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "drops"),
    [
        (["finetune.features_lr=0"], False),
        (["++finetune.layer_lr={first*: 0}"], False),
        (["finetune.classifier_epochs=1"], False),
        (["finetune.features_lr=0.1"], True),
    ],
)
def test_frozen_features_drop_nothing(words: list[str], drops: bool) -> None:
    """In an epoch the classifier learns the same, whether the frozen features have dropout or not."""
    learnt = []
    for dropout in (0.5, 0.0):
        torch.manual_seed(0)
        first = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 12), nn.Dropout(dropout))
        context = context_around(nn.Sequential(OrderedDict({"first": first, "classifier": nn.Linear(12, 10)})), *words)
        context.untrained = False
        task = finetune(context)
        for step, batch in enumerate(task.batches(0, 0)):
            task.step(0, step, batch)
        learnt.append(context.network.state_dict()["classifier.weight"])
    assert torch.equal(*learnt) is not drops


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("select", ["last", "best"])
def test_the_rule_and_backprop_learn_in_the_same_steps(projection: bool, select: str) -> None:
    """The same as the loop written out: the gradient crosses the rule's layer, and validation images teach nothing."""
    context = hybrid_context(f"rule.projection={str(projection).lower()}", f"finetune.select={select}")
    first_KD, middle_KD, classes_KD, bias_K = (value.clone() for value in context.network.state_dict().values())
    trained = [value.requires_grad_() for value in (first_KD, classes_KD, bias_K)]
    task = finetune(context)
    shown = []
    for epoch in range(task.epochs):
        for step, batch in enumerate(task.batches(epoch, 0)):
            task.step(epoch, step, batch)
            x_ND = torch.tanh(F.adaptive_avg_pool2d(batch.images, 8).flatten(1) @ first_KD.T)
            y_NK = x_ND @ middle_KD.T
            scores_NC = (y_NK / middle_KD.norm(dim=1) if projection else y_NK) @ classes_KD.T + bias_K
            gradients = torch.autograd.grad(F.cross_entropy(scores_NC, batch.labels), trained)
            with torch.no_grad():
                for value, gradient in zip(trained, gradients, strict=True):
                    value -= 0.1 * gradient
                oja_KD = y_NK.T @ x_ND - (y_NK**2).sum(0).unsqueeze(1) * middle_KD
                middle_KD = middle_KD + 0.5 * oja_KD / len(x_ND)
        shown.append(ended(task, epoch))
    assert shown[-1]["by_rule"]["middle"]["steps"] == task.steps
    wanted = dict(zip(context.network.state_dict(), (first_KD, middle_KD, classes_KD, bias_K), strict=True))
    for name, value in context.network.state_dict().items():
        torch.testing.assert_close(value, wanted[name].detach(), rtol=1e-4, atol=1e-6)
    task.finish(shown[-1])
    lengths = context.network.get_submodule("middle").weight.norm(dim=1)  # type: ignore[operator]
    assert bool(((lengths - 1).abs() < 1e-5).all()) is projection


@pytest.mark.slow
def test_a_factor_of_0_for_all_but_some_leaves_those_learning(command: Callable[..., Ran]) -> None:
    ran = command("train", "finetune.layer_lr={*: 0, conv4: 1}", "label_fraction=0.2")
    assert ran.code == 0, ran.err
    before, after = (load_file(ran.directories(name)[0] / "model.safetensors") for name in ("pretrain", "finetune"))
    learnt = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert learnt == {"conv4", "classifier"}


@pytest.mark.slow
def test_the_order_of_patterns_is_a_setting_where_it_counts(command: Callable[..., Ran]) -> None:
    for patterns in ("{conv*: 0.5, conv1*: 0.1}", "{conv1*: 0.1, conv*: 0.5}", "{conv1*: 0.1, fc5: 0.5}"):
        ran = command("train", f"finetune.layer_lr={patterns}", "label_fraction=0.2", "finetune.epochs=1")
        assert ran.code == 0, ran.err
    contents = [json.loads((path / "fingerprint.json").read_text()) for path in ran.directories("finetune")]
    assert len(contents) == 3
    assert sum("finetune.layer_lr.order" in content for content in contents) == 2


def test_an_epoch_resumed_after_its_last_step_teaches_the_rule_nothing_more() -> None:
    """It still scores the validation images, whose forward passes run the learner's hooks."""
    once, resumed = hybrid_context("finetune.select=best"), hybrid_context("finetune.select=best")
    task = finetune(once)
    for step, batch in enumerate(task.batches(0, 0)):
        task.step(0, step, batch)
    again = finetune(resumed)
    resumed.network.load_state_dict({name: value.clone() for name, value in once.network.state_dict().items()})
    for name, part in task.state.items():
        again.state[name].load_state_dict(copy.deepcopy(part.state_dict()))
    for one in (task, again):
        ended(one, 0)
        one.step(1, 0, next(one.batches(1, 0)))
    for name, value in once.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


def test_layers_by_rule_stand_still_while_the_classifier_learns_alone() -> None:
    context = hybrid_context("finetune.classifier_epochs=1")
    context.untrained = False
    before = context.network.get_submodule("middle").weight.clone()  # type: ignore[operator]
    task = finetune(context)
    for epoch, moves in ((0, False), (1, True)):
        for step, batch in enumerate(task.batches(epoch, 0)):
            task.step(epoch, step, batch)
        assert torch.equal(before, context.network.get_submodule("middle").weight) is not moves  # type: ignore[arg-type]
        assert ("by_rule" in ended(task, epoch)) is moves


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["hpca", "swta"])
def test_a_hybrid_of_one_stage_through_the_command(command: Callable[..., Ran], rule: str) -> None:
    chosen = (f"rule={rule}", "rule.whitening=null", "finetune.by_rule=[conv1,conv3]")
    words = (*chosen, "label_fraction=0.2", "finetune.epochs=1")
    ran = command("train", *words)
    assert ran.code == 0, ran.err
    before, after = (load_file(ran.directories(name)[0] / "model.safetensors") for name in ("pretrain", "finetune"))
    moved = {name: not torch.equal(before[name], after[name]) for name in before if name.endswith("0.weight")}
    assert all(moved.values())
    (line,) = (ran.directories("finetune")[0] / "metrics.jsonl").read_text().splitlines()
    assert list(json.loads(line)["by_rule"]) == ["conv1.0", "conv3.0"]
    faster = command("train", *words, "finetune.layer_lr={conv1: 0.5}", "finetune.augment=none")
    assert faster.code == 0, faster.err
    assert len(ran.directories("pretrain")) == 1


@pytest.mark.slow
def test_patience_ends_where_validation_stopped_rising(command: Callable[..., Ran]) -> None:
    words = ("rule=none", "label_fraction=0.05", "finetune.select=best")
    whole = command("train", *words, "finetune.epochs=25")
    assert whole.code == 0, whole.err
    (directory,) = whole.directories("finetune")
    curve = [json.loads(line)["validation_top1"] for line in (directory / "metrics.jsonl").read_text().splitlines()]
    wanted, best = len(curve), 0
    for epoch, top1 in enumerate(curve):
        best = epoch if top1 > curve[best] else best
        if epoch - best == 2:
            wanted = epoch + 1
            break
    assert wanted < 25
    ran = command("train", *words, "finetune.epochs=25", "finetune.patience=2")
    assert ran.code == 0, ran.err
    (early,) = set(ran.directories("finetune")) - {directory}
    results = json.loads((early / "results.json").read_text())
    assert results["epochs"] == wanted
    assert results["labels_validation"] == 300
    assert f"{results['labels_train']} + 300 val." in ran.out  # validation labels that were read are shown, too
    assert results["top1"] == max(curve[:wanted])
    assert f"ended after {wanted} of 25 epochs" in ran.err + ran.out


@pytest.mark.slow
def test_some_layers_stay_as_the_rule_made_them_while_backprop_trains_the_others(command: Callable[..., Ran]) -> None:
    """A hybrid: conv1 and conv2 by the rule, the rest by backprop. Batch norm of frozen layers stays, too."""
    hybrid = ("pretrain.include=[conv1,conv2]", "finetune.layer_lr={conv1: 0, conv2*: 0, fc5: 0.1}")
    ran = command("train", *hybrid, "label_fraction=0.2")
    assert ran.code == 0, ran.err
    before, after = (load_file(ran.directories(name)[0] / "model.safetensors") for name in ("pretrain", "finetune"))
    for name in before:
        assert torch.equal(before[name], after[name]) is name.startswith(("conv1", "conv2")), name


def test_factors_on_the_rate_by_layer() -> None:
    network = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("conv1", "conv2", "fc3", "classifier")})
    settings = with_defaults(
        FinetuneConfig,
        batch_size=2,
        lr=1.0,
        schedule="cosine",
        weight_decay=0,
        momentum=0,
        layer_lr={"conv*": 0.1, "conv2": 5},
    )
    layers = layers_of(network, settings)
    rates = {id(p): group["lr"] for group in parameter_groups(layers, settings, 0.5) for p in group["params"]}
    found = [rates[id(network[name].weight)] for name in network]
    assert found == [0.05, 2.5, 0.5, 1.0]  # of several patterns that match, the last one counts
    assert len(parameter_groups(layers, dataclasses.replace(settings, layer_lr={}), 0.5)) == 2


@pytest.mark.marathon
@pytest.mark.filterwarnings("default")
def test_compiled_networks_learn_the_same(command: Callable[..., Ran]) -> None:
    torch._dynamo.reset()  # other tests in this process may have compiled something
    counters = torch._dynamo.utils.counters
    counters.clear()
    plain = command("train", "rule=none", "label_fraction=0.2", "model.dropout=0")
    loss = plain.results("finetune")["loss"]
    assert not counters["stats"]["unique_graphs"]
    compiled = command("train", "rule=none", "label_fraction=0.2", "model.dropout=0", "gpu.compile=true", "force=true")
    assert compiled.code == 0, compiled.err
    assert counters["stats"]["unique_graphs"] > 0
    assert compiled.results("finetune")["loss"] == pytest.approx(loss, rel=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("words", [("finetune=hebbian",), ("finetune.by_rule=[conv1]",)])
def test_what_learns_in_hooks_learns_the_same_where_all_else_is_compiled(
    command: Callable[..., Ran], words: tuple[str, ...]
) -> None:
    words = (*words, "label_fraction=0.2", "model.dropout=0")
    loss = command("train", *words).results("finetune")["loss"]
    compiled = command("train", *words, "gpu.compile=true", "force=true")
    assert compiled.code == 0, compiled.err
    assert compiled.results("finetune")["loss"] == pytest.approx(loss, rel=1e-3)


@pytest.mark.slow
def test_fine_tuning_after_a_layer_shares_the_pretraining_and_is_evaluated_whole(command: Callable[..., Ran]) -> None:
    ran = command("train", "-m", "finetune=few_labels", "finetune.layer=conv1,conv2", "label_fraction=0.2")
    assert ran.code == 0, ran.err
    assert len(ran.directories("pretrain")) == 1
    shapes = [load_file(d / "model.safetensors")["classifier.3.weight"].shape for d in ran.directories("finetune")]
    assert sorted(shapes) == [(10, 3 * 16), (10, 4 * 16)]
    network = load_model(ran.directories("finetune")[0])
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.slow
def test_a_cut_network_can_not_grow_again(command: Callable[..., Ran]) -> None:
    stages = ("+finetune@extra.deeper=few_labels", "extra.deeper.layer=conv3", "stages=[pretrain,finetune,deeper]")
    ran = command("train", "finetune=few_labels", *stages)
    assert ran.code == 2
    assert "no layer 'conv3'; the network has: conv1, conv2" in ran.err


def test_the_loss_of_weighted_classes_adds_up_over_parts_of_a_batch() -> None:
    scores, labels = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0] * 7 + [1, 2, 2])
    weight_C = balanced(labels, 3).float()
    whole, hits = loss_and_hits(scores, labels, weight_C)
    parts = [loss_and_hits(scores[some], labels[some], weight_C) for some in (slice(0, 4), slice(4, 10))]
    assert float(whole) == pytest.approx(0.4 * float(parts[0][0]) + 0.6 * float(parts[1][0]), rel=1e-6)
    assert int(hits) == sum(int(count) for _, count in parts)
    by_class = [float(loss_and_hits(scores[labels == k], labels[labels == k])[0]) for k in range(3)]
    assert float(whole) == pytest.approx(sum(by_class) / 3, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["backprop", "closed_form"])
def test_rare_classes_are_found_where_all_count_the_same(
    command: Callable[..., Ran], tmp_path: Path, choice: str
) -> None:
    """Of digits, where twenty labels are of an odd one to each of an even one."""
    digits = load_dataset(loaded("dataset=digits").dataset, 0)
    odd = digits.labels[digits.train] % 2 == 1
    listed = torch.cat([digits.train[odd], digits.train[~odd][:25]])
    (tmp_path / "few.txt").write_text(" ".join(map(str, listed.tolist())))
    words = ["dataset=digits", "model.width=0.03", f"label_subset={tmp_path / 'few.txt'}", "pretrain.epochs=1",
             f"finetune={choice}"]  # fmt: skip
    words += ["finetune.epochs=10"] if choice == "backprop" else ["finetune.classifier=ridge", "finetune.ridge=1"]
    found = []
    for balance in ("false", "true"):
        ran = command("train", *words, f"finetune.balance={balance}", f"out={tmp_path / balance}", small=False)
        assert ran.code == 0, ran.err
        (measured,) = (tmp_path / balance).glob("*-evaluate-*/results.json")
        found.append(json.loads(measured.read_text())["balanced_top1"])
    assert found[1] > found[0] + 0.02, found


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_step_in_one_pass_over_the_weights_is_the_usual_step(name: str) -> None:
    words = ("finetune=backprop", f"finetune.optimizer={name}", "finetune.weight_decay=0.1")
    settings = loaded(*words).settings["finetune"]
    assert isinstance(settings, FinetuneConfig)
    draws = torch.Generator().manual_seed(0)
    gradients = [torch.randn(3, 50, generator=draws) for _ in range(5)]
    after = []
    for fused in (True, False):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 150).reshape(3, 50))
        optimizer = backprop_optimizer(settings, [{"params": [weight], "lr": 0.1}])
        assert optimizer.param_groups[0]["fused"] is True
        optimizer.param_groups[0]["fused"] = fused
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        after.append(weight.detach())
    torch.testing.assert_close(after[0], after[1], rtol=1e-5, atol=1e-6)
