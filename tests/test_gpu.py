"""What only a GPU runs: precisions, a step replayed as one CUDA graph, its random state in checkpoints, its memory."""

import gc
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fasthebb.fused import fuses
from fasthebb.gradients import fastest_terms, terms_of
from fasthebb.learner import HebbianLearner
from fasthebb.replay import NotRecordable, Replay, Tensors
from fasthebb.responses import RESPONSES, PreActivation
from fasthebb.settings import RULES, Execution, StepSetting
from fasthebb.teacher import Teacher
from fasthebb_cli import cli
from fasthebb_cli.bench.measure import peak_bytes
from tests.conftest import Ran
from tests.data.images import class_folders
from tests.disturbed import kill_at_random_moments, outcome
from tests.fasthebb.in_interpreter import pre_activation, total
from tests.fasthebb.test_many import BATCHES, NORMALISED, network, same

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def made(rule: str, device: str, *, replay: bool = False, taught: bool = False) -> tuple[nn.Module, HebbianLearner]:
    model = network(torch.float64).to(device).train()
    step = StepSetting(normalise=rule in NORMALISED)
    teacher = Teacher(3) if taught else None
    return model, HebbianLearner(model, rule, lr=0.02, step=step, teacher=teacher, execution=Execution(replay=replay))


def learn(learner: HebbianLearner, device: str, steps: range, taught: bool = False) -> None:
    """Each batch is of one of three lengths and has another rate."""
    for step in steps:
        total = BATCHES[step % 3]
        images = torch.randn(total, 2, 8, 8, generator=torch.Generator().manual_seed(step)).double().to(device)
        for group in learner.optimizer.param_groups:
            group["lr"] = 0.02 / (1 + step)
        learner.learn(images, torch.arange(total, device=device) % 3 if taught else None)


def state(model: nn.Module, learner: HebbianLearner) -> dict[str, Tensor]:
    found = {name: value.cpu().clone() for name, value in model.state_dict().items()}
    for layer in learner.layers:
        found[f"{layer.name}.alive"] = layer.alive.cpu().clone()
        found[f"{layer.name}.update"] = layer.update_total.cpu().clone()
        if layer.moments is not None:
            found |= {f"{layer.name}.{key}": value.cpu().clone() for key, value in vars(layer.moments).items()}
    return found


@pytest.mark.parametrize("replay", [False, True], ids=["eager", "replayed"])
@pytest.mark.parametrize("taught", [False, True], ids=["free", "taught"])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_learns_as_on_the_cpu(rule: str, taught: bool, replay: bool) -> None:
    there, here = made(rule, "cuda", replay=replay, taught=taught), made(rule, "cpu", taught=taught)
    for (_, learner), device in ((there, "cuda"), (here, "cpu")):
        learn(learner, device, range(60), taught)
    same(state(*there), state(*here), 1e-7)
    if replay:  # every length in a step that is watched and in one that is not
        assert recorded(there[1]) >= 6


@pytest.mark.parametrize("rule", ["swta", "pswta", "hwta", "kwta", "kmeans", "softhebb"])
def test_the_kernel_of_a_competitive_rule_gives_its_eager_terms(rule: str) -> None:
    """In float32, as no rule is fused in the float64 of the other tests."""
    setting = RULES[rule]
    here = pre_activation(5000, 2, 96)
    assert here.patch_norm_NG1 is not None
    assert here.weight_square_GK is not None
    there = PreActivation(
        here.dot_NGK.cuda(), None, here.patch_norm_NG1.cuda(), weight_square_GK=here.weight_square_GK.cuda()
    )
    response = RESPONSES[setting.response]
    assert fuses(response, setting.rule, {}, there)
    found, expected = (f(response, setting.rule, {}, there, None, None) for f in (fastest_terms, terms_of))
    assert found.total is not None
    for one, other in (
        (found.gate, expected.gate), (found.share, expected.share), (found.total, total(expected)),
    ):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def recorded(learner: HebbianLearner) -> int:
    assert learner._replay is not None
    return sum(recording is not None for recording in learner._replay.recordings.values())


def test_layers_that_learn_in_turn_are_replayed_so() -> None:
    states = []
    for device, replay in (("cuda", True), ("cpu", False)):
        model, learner = made("hpca", device, replay=replay)
        for turn, layer in enumerate(learner.layers):
            learner.learn_only(layer.name)
            learn(learner, device, range(9 * turn, 9 * turn + 9))
        if replay:
            assert recorded(learner) >= len(learner.layers)
        states.append(state(model, learner))
    same(states[0], states[1], 1e-7)


@pytest.mark.parametrize("rule", ["hpca", "bcm"])
def test_a_replayed_learner_goes_on_from_its_state(rule: str) -> None:
    """The recordings of before read the moments of before."""
    whole, first, second = (made(rule, "cuda", replay=True) for _ in range(3))
    learn(whole[1], "cuda", range(40))
    learn(first[1], "cuda", range(20))
    learn(second[1], "cuda", range(100, 120))  # whatever it did is forgotten
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    learn(second[1], "cuda", range(20, 40))
    same(state(*second), state(*whole), 1e-12)


def test_what_waits_for_a_number_is_no_graph() -> None:
    replay = Replay(lambda x: [x * float(x.sum())])
    x = torch.ones(3, device="cuda")
    assert numbers(replay(x)) == (3, 3, 3)
    with pytest.raises(NotRecordable):
        replay(x)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    dropped = Replay(lambda x: [torch.nn.functional.dropout(x, 0.5)])
    assert len({numbers(dropped(x)) for _ in range(40)}) > 2


def numbers(results: Tensors) -> tuple[float, ...]:
    (found,) = results
    assert found is not None
    return tuple(found.tolist())


def test_a_finished_stage_holds_no_memory(command: Callable[..., Ran]) -> None:
    before = torch.cuda.memory_allocated()
    for seed in range(2):
        assert command("train", "gpu=cuda", f"seed={seed}").code == 0
        gc.collect()
    assert torch.cuda.memory_allocated() - before < 30e6  # the images of digits are 12 MB


@pytest.mark.parametrize("packed", [False, True])
def test_images_are_read_ahead_while_steps_are_recorded(
    command: Callable[..., Ran], tmp_path: Path, packed: bool
) -> None:
    root = tmp_path / "images"
    class_folders(root, {"a": 150, "b": 150})
    if packed:
        words = ("dataset=image_folder", f"dataset.root={root}", "dataset.size=32")
        assert cli.run(["data", "prepare", *words, f"out={tmp_path / 'packed'}"]) == 0
        root = tmp_path / "packed"
    ran = command(
        "train", "dataset=image_folder", f"dataset.root={root}", "dataset.in_memory=false", "gpu=cuda", "gpu.workers=2",
        "pretrain.batch_size=8", "finetune.batch_size=8",
    )  # fmt: skip
    assert ran.code == 0, ran.err


def test_peak_memory_is_the_most_held_at_a_time() -> None:
    held = torch.ones(1000, 1000, device="cuda")
    assert peak_bytes(lambda: (held + 1).sum(), held.device) == pytest.approx(4e6, rel=0.01)


@pytest.mark.parametrize(
    "setting",
    [
        "gpu.precision=fp32",
        "gpu.precision=tf32",
        "gpu.precision=bf16",
        "gpu.graph=false",
        "gpu.compile=true",
        "gpu.deterministic=true",
        "gpu.channels_last=false",
    ],
)
@pytest.mark.parametrize("rule", ["hpca", "swta", "vae"])
def test_a_run_ends_where_it_does_on_the_cpu(
    command: Callable[..., Ran], rule: str, setting: str, tmp_path: Path
) -> None:
    words = ("stages=[pretrain,finetune,probe,evaluate]", f"rule={rule}", "model.width=0.1")
    accuracies = []
    for device, more in (("cpu", ()), ("cuda", (setting,))):
        ran = command("train", *words, f"gpu={device}", *more, f"out={tmp_path / device}")
        assert ran.code == 0, ran.err
        (results,) = (tmp_path / device).glob("*-evaluate-*/results.json")
        accuracies.append(json.loads(results.read_text())["top1"])
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.05)


def test_features_are_those_of_the_cpu(command: Callable[..., Ran], tmp_path: Path) -> None:
    ran = command("train", "stages=[pretrain]", "gpu=cuda")
    (directory,) = ran.directories("pretrain")
    class_folders(tmp_path / "images", {"a": 5})
    for device in ("cpu", "cuda"):
        words = (str(directory), str(tmp_path / "images"), f"device={device}", f"out={tmp_path / device}")
        assert cli.run(["features", *words]) == 0
    found, wanted = (np.load(tmp_path / f"{device}.npy") for device in ("cuda", "cpu"))
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize(
    "more", [("rule=hpca",), ("rule=vae",), ("rule=swta", "finetune=gentle", "finetune.augment=light")]
)
def test_a_replayed_run_is_that_without_graphs(
    command: Callable[..., Ran], tmp_path: Path, more: tuple[str, ...]
) -> None:
    """Dropout and all."""
    words = (*more, "gpu=cuda", "gpu.precision=fp32", "gpu.deterministic=true", "pretrain.epochs=3")
    for graph in ("true", "false"):
        ran = command("train", *words, f"gpu.graph={graph}", f"out={tmp_path / graph}")
        assert ran.code == 0, ran.err
    assert outcome(tmp_path / "true") == outcome(tmp_path / "false")


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["hpca", "vae"])
def test_killed_and_resumed_it_ends_in_the_same_bits(tmp_path: Path, rule: str) -> None:
    """Dropout is drawn on the GPU."""
    exact = ("gpu=cuda", "gpu.precision=fp32", "gpu.deterministic=true")
    words = (f"rule={rule}", *exact, "pretrain.epochs=3", "finetune.epochs=3")
    hit = kill_at_random_moments(tmp_path / "killed", {"pretrain": 2, "finetune": 2}, *words)
    assert hit["pretrain"] >= 2
    assert hit["finetune"] >= 2
