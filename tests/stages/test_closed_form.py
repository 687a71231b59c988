"""Fine-tuning in closed form, and random filters as a control, through the command."""

import json
import re
import shutil
from collections.abc import Callable
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from fasthebb.model_file import load_model_and_card
from fasthebb.nets.networks import conv6
from fasthebb.readout.features import Features
from fasthebb.readout.network import ClosedForm
from fasthebb_cli.compute.seeds import derived_seed
from fasthebb_cli.compute.signals import STOPPED
from fasthebb_cli.data.dataset import load_dataset
from fasthebb_cli.run.start import new_network
from tests.conftest import Ran, loaded
from tests.disturbed import outcome
from tests.fasthebb.test_many import same
from tests.lives import Life
from tests.lives import command as command_of
from tests.run.test_resume import stop_at

Command = Callable[..., Ran]
SHORT = ("dataset=digits", "model.width=0.1", "pretrain.epochs=2", "gpu=cpu")
CLOSED = (*SHORT, "finetune=closed_form", "finetune.components=40", "finetune.views=2")


@pytest.mark.slow
@pytest.mark.parametrize("classifier", ["auto", "kernel", "propagation", "ridge"])
def test_it_learns_and_its_model_gives_the_scores_that_were_measured(command: Command, classifier: str) -> None:
    ran = command("train", *CLOSED, f"finetune.classifier={classifier}", "label_fraction=0.05", small=False)
    assert ran.code == 0, ran.err
    tuned, measured = ran.results("finetune"), ran.results("evaluate")
    assert tuned["kind"] == "closed_form"
    assert tuned["labels_train"] == 50
    assert tuned["labels_validation"] == measured["labels_validation"] == 0
    assert measured["top1"] > 0.6
    assert measured["top1"] == pytest.approx(tuned["expected_top1"], abs=0.15)
    if classifier != "auto":
        assert tuned["chosen"]["classifier"] == classifier
    assert f"chose classifier={tuned['chosen']['classifier']}" in ran.err + ran.out
    network, card = load_model_and_card(ran.directories("finetune")[0])
    dataset = load_dataset(loaded(*SHORT).dataset, 0)
    mean, std = torch.tensor(card.mean)[:, None, None], torch.tensor(card.std)[:, None, None]
    with torch.no_grad():
        scores = network((dataset.source.read(dataset.test).float() / 255 - mean) / std)
    labels = dataset.labels[dataset.test]
    assert float((scores.argmax(1) == labels).double().mean()) == pytest.approx(measured["top1"], abs=0.005)
    confidence = float(scores.softmax(1).amax(1).mean())
    assert confidence == pytest.approx(measured["top1"], abs=0.2), "the softmax says how sure it is"


@pytest.mark.slow
def test_label_budgets_share_what_needs_no_label(command: Command) -> None:
    words = ("train", *CLOSED, "stages=[pretrain,finetune]")
    for more in (["label_fraction=0.05"], ["label_fraction=0.1"], ["label_fraction=0.1", "finetune.ridge=1"]):
        ran = command(*words, *more, small=False)
        assert ran.code == 0, ran.err
    assert len(ran.directories("components")) == 1
    assert len(ran.directories("finetune")) == 3
    first = ran.results("components")
    assert first["labels_train"] == first["labels_validation"] == 0
    assert first["components"] == 40
    assert command(*words, "finetune.pool=2", small=False).code == 0
    assert len(ran.directories("components")) == 2


@pytest.mark.slow
def test_components_alone_are_a_model_without_a_classifier(command: Command, tmp_path: Path) -> None:
    ran = command("train", *CLOSED, "stages=[pretrain,finetune]", "label_fraction=0.05", small=False)
    (made,) = ran.directories("components")
    network, card = load_model_and_card(made)
    assert not card.taught
    assert card.labels_train == 0
    images = torch.rand(3, card.channels, card.size, card.size)
    with torch.no_grad():
        z_BK = network.components(images)  # type: ignore[operator]
        assert z_BK.shape == (3, 40)
        tuned, _ = load_model_and_card(ran.directories("finetune")[0])
        torch.testing.assert_close(tuned.components(images), z_BK)  # type: ignore[operator]
    again = command("finetune", *CLOSED, f"init_from={made}", "label_fraction=0.05", f"out={tmp_path}", small=False)
    assert again.code == 0, again.err
    (path,) = tmp_path.glob("*-finetune-*/model.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(load_model_and_card(path)[0](images), tuned(images), atol=1e-3, rtol=1e-3)
    assert isinstance(network, ClosedForm)
    network.check(images[:1], None)  # a data set with other classes may go on from here
    with pytest.raises(ValueError, match="scores of shape"):
        network.check(images[:1], 7)
    weights = load_file(made / "model.safetensors")
    with safe_open(made / "model.safetensors", framework="pt") as file:
        save_file(weights | {"map": weights["map"][1:].contiguous()}, tmp_path / "damaged", file.metadata())
    refused = command("finetune", *CLOSED, f"init_from={tmp_path / 'damaged'}", small=False)
    assert refused.code == 2
    assert re.fullmatch(r"error: \S+/damaged: its readout does not fit together .*\n", refused.err), refused.err


@pytest.mark.slow
def test_its_layers_can_be_probed(command: Command) -> None:
    stages = ("stages=[pretrain,finetune,probe]", "probe.methods=[hebbian]")
    ran = command("train", *CLOSED, *stages, "label_fraction=0.05", small=False)
    assert ran.code == 0, ran.err
    assert ran.results("probe")["layers"].keys() == {"features.conv1", "features.conv2"}


@pytest.mark.slow
def test_a_damaged_or_foreign_closed_form_is_refused_in_one_line(command: Command, tmp_path: Path) -> None:
    ran = command("train", *CLOSED, "stages=[pretrain,finetune]", "label_fraction=0.05", small=False)
    assert ran.code == 0, ran.err
    path = ran.directories("finetune")[0] / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["fasthebb"])
    weights, shown = load_file(path), described["closed_form"]
    damaged: list[Any] = [
        {},
        [],
        shown | {"more": 1},
        shown | {"pool": "4"},
        shown | {"layers": [1]},
        shown | {"pool": 0},
    ]
    for changed in damaged:
        save_file(weights, tmp_path / "card", {"fasthebb": json.dumps(described | {"closed_form": changed})})
        with pytest.raises(ValueError, match="the description of its network is damaged"):
            load_model_and_card(tmp_path / "card")
    for name, value in {
        "mean": torch.zeros(3),
        "map": weights["map"][:, :7],
        "linear": weights["linear"][:, :4],
        "rows": torch.cat([weights["rows"], weights["rows"]])[:7],
    }.items():
        save_file(weights | {name: value.contiguous()}, tmp_path / "weights", {"fasthebb": json.dumps(described)})
        with pytest.raises(ValueError, match="its readout"):
            load_model_and_card(tmp_path / "weights")
        refused = command("evaluate", *CLOSED, f"init_from={tmp_path / 'weights'}", small=False)
        assert refused.code == 2, name
        assert re.fullmatch(r"error: \S+/weights: its readout .*\n", refused.err), refused.err


@pytest.mark.slow
def test_the_images_in_a_batch_change_rounding_only(command: Command, tmp_path: Path) -> None:
    states = []
    for size in (64, 300):
        out = tmp_path / str(size)
        words = (*CLOSED, "finetune.classifier=kernel", f"finetune.batch_size={size}", "stages=[pretrain,finetune]")
        assert command("train", *words, "label_fraction=0.05", f"out={out}", small=False).code == 0
        (path,) = out.glob("*-finetune-*/model.safetensors")
        states.append({"scale": load_file(path)["map"].norm(dim=0), "mean": load_file(path)["mean"]})
    same(states[0], states[1], 1e-3)


LANDMARKS = ("finetune.kernel_rows=100", "finetune.landmarks=60")
FEW = ("label_fraction=0.05",)
MANY = (*LANDMARKS, "label_fraction=0.2")  # more rows than a kernel holds
MOST = (*LANDMARKS, "label_fraction=1")  # more rows than memory is to hold: one more pass


@pytest.mark.slow
def test_propagation_reads_every_label_however_few_rows_a_kernel_holds(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("fasthebb_cli.stages.closed_form"), "JUDGED", 50)
    shared = (*CLOSED, "finetune.classifier=propagation", "label_fraction=0.2", "stages=[pretrain,finetune]")
    for more in ((), LANDMARKS):
        assert command("train", *shared, *more, small=False).code == 0
    ran = command("train", *shared, small=False)
    one, other = (load_file(path / "model.safetensors") for path in ran.directories("finetune"))
    torch.testing.assert_close(one["linear"], other["linear"])


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize(
    "more", [FEW, MANY, pytest.param(MOST, marks=pytest.mark.marathon)], ids=["few", "many", "most"]
)
def test_stopped_at_every_decision_it_ends_in_the_same_bits(
    command: Command, tmp_path: Path, more: tuple[str, ...]
) -> None:
    words = (*CLOSED, "finetune.batch_size=250", "stages=[pretrain,finetune]", *more)
    once = command("train", *words, small=False)
    assert once.code == 0, once.err
    expected = outcome(once.runs)
    (passes,) = [value for name, value in expected.items() if "-finetune-" in name and name.endswith("/epochs")]
    assert len(passes) == (2 if more == MOST else 1)  # type: ignore[arg-type]
    (pretrained,) = once.directories("pretrain")
    for number in count(1):
        out = tmp_path / str(number)
        shutil.copytree(pretrained, out / pretrained.name)
        with stop_at(number):
            code = command("train", *words, f"out={out}", small=False).code
        if code == 0:
            break
        assert code == STOPPED
        again = command("train", *words, f"out={out}", small=False)
        assert again.code == 0, again.err
        assert outcome(out) == expected, f"decision {number}"
    assert number > 7


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("more", [FEW, MANY, MOST], ids=["few", "many", "most"])
def test_two_processes_choose_and_score_as_one(tmp_path: Path, more: tuple[str, ...]) -> None:
    results = []
    for size in (1, 2):
        out = tmp_path / str(size)
        words = ["train", *CLOSED, *more, f"out={out}", "finetune.batch_size=300"]
        life = Life(command_of(words), tmp_path / f"{size}.log", size=size)
        assert life.wait() == 0, life.text()
        results.append([json.loads(path.read_text()) for path in sorted(out.glob("*/results.json"))])
    for one, two in zip(*results, strict=True):
        assert one["fingerprint"] == two["fingerprint"]
        if one["stage"] == "evaluate":
            assert two["top1"] == pytest.approx(one["top1"], abs=0.01)
        if one["stage"] == "finetune":
            assert two["chosen"] == one["chosen"]


@pytest.mark.slow
def test_random_filters_stay_random_and_get_statistics(command: Command) -> None:
    ran = command("train", *CLOSED, "rule=random", "label_fraction=0.05", small=False)
    assert ran.code == 0, ran.err
    (pretrained,) = ran.directories("pretrain")
    state = load_file(pretrained / "model.safetensors")
    made = conv6(channels=1, size=32, classes=10, width=0.1).state_dict()
    for name, value in made.items():
        if name.endswith("running_var"):
            assert not torch.allclose(state[name], value), f"{name} is as it was"
    config = loaded(*SHORT)
    torch.manual_seed(derived_seed(config.seed, "network"))
    drawn = new_network(config, load_dataset(config.dataset, 0)).state_dict()
    weights = [name for name in drawn if name.endswith("weight") and drawn[name].dim() > 1]
    assert weights
    assert all(torch.equal(state[name], drawn[name]) for name in weights), "no filter learns"
    assert ran.results("evaluate")["top1"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["finetune.kernel_rows=100"], ["rule=none", "stages=[finetune,probe,evaluate]"]])
def test_a_dry_run_times_every_pass(command: Command, more: list[str]) -> None:
    words = (*CLOSED, "finetune.batch_size=32", "probe.methods=[hebbian]", *more)
    ran = command("train", *words, "--dry-run", small=False)
    assert ran.code == 0, ran.err
    (line,) = [line for line in ran.out.splitlines() if line.startswith("evaluate")]
    assert "about" in line
    assert not ran.runs.exists()


@pytest.mark.slow
def test_random_filters_are_shared_whatever_a_rule_would_be_told(command: Command) -> None:
    words = (*SHORT, "rule=random")
    assert command("pretrain", *words, small=False).code == 0
    other = (
        "pretrain.epochs=7",
        "pretrain.augment=shift",
        "pretrain.teacher=true",
        "rule.lr=0.5",
        "label_fraction=0.1",
    )
    ran = command("pretrain", *words, *other, small=False)
    assert "pretrain: finished before" in ran.err + ran.out
    assert len(ran.directories("pretrain")) == 1
    ran = command("pretrain", *words, "rule.whitening=0.1", small=False)
    assert ran.code == 0, ran.err
    assert len(ran.directories("pretrain")) == 2, "what changes the filters' outputs still counts"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["finetune.layers=[]"], "finetune.layers is empty"),
        (["finetune.layers=[conv9]"], "no layer 'conv9'; the network has: conv1"),
        (["finetune.classifier=tree"], "finetune.classifier must be one of auto, kernel, propagation, ridge"),
        (["finetune.shrinkage=0"], "finetune.shrinkage"),
        (["finetune.view=film"], "finetune.view must be one of"),
        (["finetune.epochs=2"], "unknown key finetune.epochs; this choice of finetune accepts: kind, layers"),
        (["finetune.layers=[conv1,classifier]"], r"finetune.layers=\[conv1,classifier\]: no layer 'classifier'; the"),
        (["finetune.layers=[conv1.7]"], r"no layer 'conv1.7'; the network has: .*, conv1.0, conv1.1"),
        (["model=torchvision:shufflenet_v2_x0_5"], "finetune.layers: .* no children that give maps; .*features.conv1"),
        (["label_fraction=0.001", "label_subset=random"], "finetune needs labels of two classes or more"),
    ],
)
def test_bad_input(command: Command, words: list[str], expected: str) -> None:
    ran = command("train", *SHORT[:1], "finetune=closed_form", *words, small=False)
    assert_refused(ran, expected)


def test_what_has_to_be_run_first_is_named_by_its_verb(command: Command) -> None:
    ran = command("evaluate", *SHORT, "finetune=closed_form", "rule=none", small=False)
    assert ran.code == 2
    assert "components is not finished" in ran.err
    assert "fasthebb finetune ..." in ran.err


def test_the_name_of_a_stage_that_another_needs_is_taken(command: Command) -> None:
    ran = command("train", *SHORT, "+finetune@extra.components=frozen", small=False)
    assert_refused(ran, "extra.components: the name is taken by the stage of that kind")


def assert_refused(ran: Ran, expected: str) -> None:
    """In one line, before pre-training begins."""
    assert ran.code == 2, ran.err
    assert len(ran.err.splitlines()) == 1, ran.err
    assert re.search(expected, ran.err), ran.err
    assert not ran.directories("pretrain")


def test_a_graph_of_too_many_images_is_refused(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("fasthebb_cli.stages.closed_form"), "GRAPH_IMAGES", 999)
    words = (*CLOSED, "finetune.classifier=propagation")
    assert_refused(command("train", *words, small=False), "compares all pairs of 1,000 images, and takes at most 999")
    ran = command("train", *words, "--dry-run", small=False)
    assert ran.code == 2
    assert "takes at most 999" in ran.err


OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, 8, 5), nn.ReLU(), nn.BatchNorm2d(8))
        self.second = nn.Conv2d(8, 12, 3)
        self.two = nn.LSTM(12, 3)
        self.classifier = nn.Linear(3, classes)

    def forward(self, images):
        if float(images.sum()) == 0.5:  # it reads a value
            raise RuntimeError
        x = self.second(self.first(images)).mean((2, 3))
        return self.classifier(self.two(x)[0])

def net(channels, size, classes):
    return Net(channels, classes)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "layers"),
    [
        (["finetune.layers=[conv*]"], {"conv1", "conv2", "conv3", "conv4"}),
        (["finetune.layers=[conv2.0,conv1]"], {"conv1", "conv2"}),
        (["model=net_of_closed_form:net", "finetune.layers=[second,first]"], {"network"}),
        (["model=torchvision:shufflenet_v2_x0_5", "finetune.layers=[features.conv1,features.stage2]"], {"features"}),
    ],
)
def test_layers_of_every_kind_of_network(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], layers: set[str]
) -> None:
    (tmp_path / "net_of_closed_form.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    narrow = [] if any(word.startswith("model=") for word in words) else ["model.width=0.05"]
    shared = ["dataset=digits", "pretrain.epochs=1", "gpu=cpu", "label_fraction=0.1"]
    stages = ["stages=[pretrain,finetune,evaluate,probe]", "probe.methods=[hebbian]"]
    closed = ["finetune=closed_form", "finetune.components=40", "finetune.views=1"]
    ran = command("train", *shared, *narrow, *stages, *closed, *words, small=False)
    assert ran.code == 0, ran.err
    top1 = ran.results("evaluate")["top1"]
    assert top1 > 0.4
    network, card = load_model_and_card(ran.directories("finetune")[0], trust=["net_of_closed_form:net"])
    assert {name for name, _ in network.get_submodule("features").named_children()} == layers
    dataset = load_dataset(loaded(*shared[:1]).dataset, 0)
    mean, std = torch.tensor(card.mean)[:, None, None], torch.tensor(card.std)[:, None, None]
    with torch.no_grad():
        scores = network((dataset.source.read(dataset.test).float() / 255 - mean) / std)
    assert float((scores.argmax(1) == dataset.labels[dataset.test]).double().mean()) == pytest.approx(top1, abs=0.005)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("[two]", "layer two gives no row or map for each image, but an output of type tuple"),
        ("null", "no children that give maps; name some layers of: first, second, two"),
    ],
)
def test_layers_of_an_own_network_that_give_no_features_are_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: str, expected: str
) -> None:
    (tmp_path / "net_of_closed_form.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("dataset=digits", "gpu=cpu", "model=net_of_closed_form:net", "finetune=closed_form")
    assert_refused(command("train", *words, f"finetune.layers={layers}", small=False), expected)


@pytest.mark.slow
def test_the_outcome_is_reused(command: Command) -> None:
    words = (*CLOSED, "stages=[pretrain,finetune]", "label_fraction=0.05")
    assert command("train", *words, small=False).code == 0
    before = outcome(command("train", *words, small=False).runs)
    ran = command("train", *words, "finetune.batch_size=99", small=False)
    assert "finetune: finished before" in ran.err + ran.out
    assert outcome(ran.runs) == before


@pytest.mark.slow
def test_nothing_goes_on_from_a_closed_form_and_that_is_said_before_anything_runs(command: Command) -> None:
    said = "end in a closed form, and nothing goes on from there"
    for stages in ("pretrain,finetune,pretrain", "pretrain,finetune,finetune"):
        ran = command("train", *CLOSED, f"stages=[{stages}]", small=False)
        assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
        assert f"the weights of the stage finetune before it {said}" in ran.err
        assert not list(ran.runs.glob("*/results.json"))
    trained = command("train", *CLOSED, small=False)
    (model,) = trained.directories("finetune")
    for stages in ("pretrain,evaluate", "evaluate,pretrain", "finetune,evaluate"):
        again = command("train", *CLOSED, f"stages=[{stages}]", f"init_from={model}", "seed=1", small=False)
        assert (again.code, again.err.count("\n")) == (2, 1), again.err
        assert f"the weights of init_from {said}" in again.err


@pytest.mark.slow
def test_features_of_all_images_are_computed_once(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The components of all images, which a graph needs, are in the model of the stage before."""
    images = 0
    forward = Features.forward

    def counted(self: Features, inputs: torch.Tensor) -> torch.Tensor:
        nonlocal images
        images += len(inputs)
        return forward(self, inputs)

    monkeypatch.setattr(Features, "forward", counted)
    words = (*SHORT, "finetune=closed_form", "finetune.components=40", "finetune.views=0", "finetune.root=true")
    ran = command("finetune", *words, "stages=[pretrain,finetune]", "label_fraction=0.05", small=False)
    assert ran.code == 0, ran.err
    assert ran.results("finetune")["samples"] == 50
    assert 1050 <= images <= 1060, "one blank image tells how many features there are"
    kept = load_file(ran.directories("components")[0] / "model.safetensors")["kept"]
    assert kept.shape == (1000, 40)
    assert "kept" not in load_file(ran.directories("finetune")[0] / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["KEPT_BYTES", "REMEMBERED_BYTES"])
def test_beyond_the_limits_features_are_computed_again(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str
) -> None:
    words = (*CLOSED, "label_fraction=0.05")
    outs = [tmp_path / "usual", tmp_path / "limited"]
    assert command("train", *words, f"out={outs[0]}", small=False).code == 0
    monkeypatch.setattr(import_module("fasthebb_cli.stages.components"), limit, 1000)
    assert command("train", *words, f"out={outs[1]}", small=False).code == 0
    stages = [next(out.glob("*-finetune-*")) for out in outs]
    states = [load_file(stage / "model.safetensors") for stage in stages]
    if limit == "REMEMBERED_BYTES":  # the same batches, so the same bits
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    else:
        assert json.loads((stages[1] / "results.json").read_text())["samples"] == 1000
        same(states[0], states[1], 1e-3)


def test_components_that_are_kept_of_other_images_are_not_taken() -> None:
    network = ClosedForm(Features(nn.Sequential(nn.Conv2d(1, 2, 3)), ["0"], 1, root=False), mirror=False)
    network.keep(torch.ones(3, 2), torch.tensor([1, 2], dtype=torch.uint8))
    assert set(network.state_dict()) >= {"kept", "kept_of"}
    assert network.take_kept(torch.tensor([1, 3], dtype=torch.uint8)) is None
    assert "kept" not in network.state_dict()
    network.keep(torch.ones(3, 2), torch.tensor([1, 2], dtype=torch.uint8))
    kept = network.take_kept(torch.tensor([1, 2], dtype=torch.uint8))
    assert kept is not None
    assert kept.shape == (3, 2)
    assert network.take_kept(torch.tensor([1, 2], dtype=torch.uint8)) is None
    for rows, of in ((torch.ones(3, 2).int(), torch.uint8), (torch.ones(3, 2), torch.float32)):  # a foreign file's
        network.keep(rows, torch.tensor([1, 2], dtype=of))
        assert network.take_kept(torch.tensor([1, 2], dtype=torch.uint8)) is None
