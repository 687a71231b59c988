"""`fasthebb bench`: its output, its counters, and its naive form, which must equal the rule."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor, nn

from fasthebb import tiles
from fasthebb.learner import HebbianLearner
from fasthebb.nets.networks import conv6
from fasthebb.settings import RULES
from fasthebb_cli import cli
from fasthebb_cli.bench import measure, naive
from fasthebb_cli.bench.measure import flops, median_ms, paired_quartiles, peak_bytes
from fasthebb_cli.bench.minimum import minimum
from fasthebb_cli.bench.naive import NAIVE, naive_form, unfolded
from fasthebb_cli.bench.step import backprop
from fasthebb_cli.bench.subject import Subject, hebbian_step
from fasthebb_cli.bench.traffic import traffic
from tests import reference
from tests.data.images import class_folders

CPU = torch.device("cpu")
Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    def run(*words: str) -> tuple[int, str, str]:
        GlobalHydra.instance().clear()
        code = cli.run(["bench", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["hpca", "swta"])
def test_step_writes_what_it_measured(bench: Bench, tmp_path: Path, rule: str) -> None:
    file = tmp_path / "step.json"
    words = (f"rule={rule}", "model.width=0.05", "batch_size=4", "repeats=1", "gpu=cpu", f"json={file}")
    code, out, err = bench("step", *words)
    assert code == 0, err
    assert "bare minimum" in out
    result = json.loads(file.read_text())
    assert all(result[f"{name}_ms"] > 0 for name in ("step", "minimum", "backprop", "naive"))
    assert set(result["ratios"]) == {"step/minimum", "step/backprop", "backprop/minimum", "naive/step"}
    assert result["ratios"]["step/minimum"][1] == pytest.approx(result["step_ms"] / result["minimum_ms"])
    assert "paired median" in out
    for counted in ("flops", "peak_bytes"):
        assert set(result[counted]) == {"step", "minimum", "backprop"}
    work = result["flops"]
    assert work["minimum"] <= work["step"] <= 1.6 * work["minimum"]
    assert {"threads", "versions", "device", "batch_size"} <= set(result)


@pytest.mark.slow
def test_a_busy_machine_is_told(bench: Bench, tmp_path: Path) -> None:
    """The neighbour works all the time, from before the start of the bench to after its end."""
    words = ("rule=oja", "model.width=0.02", "batch_size=2", "repeats=40", "gpu=cpu", "naive=false")
    loop = "print('begun', flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", loop], stdout=subprocess.PIPE, text=True) as neighbour:
        assert neighbour.stdout is not None
        neighbour.stdout.readline()
        code, out, err = bench("step", *words, f"json={tmp_path / 'step.json'}")
        neighbour.kill()
    assert code == 0, err
    assert "warning: other processes used" in out
    assert "measure again on a quiet machine" in out
    assert json.loads((tmp_path / "step.json").read_text())["others_cores"] > 0.2


@pytest.mark.slow
def test_ones_own_work_makes_no_machine_busy(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_busy_seconds", measure._own_seconds)
    code, out, _ = bench("step", "rule=oja", "model.width=0.02", "batch_size=2", "repeats=1", "gpu=cpu", "naive=false")
    assert code == 0
    assert "warning" not in out


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "most"), [("hpca", 1.27), ("swta", 1.05)])
def test_conv6_stays_near_the_minimum_of_work_and_at_half_of_backprops_memory(rule: str, most: float) -> None:
    def network() -> nn.Module:
        return conv6(channels=3, size=32, classes=10).to(memory_format=torch.channels_last)

    def learner(made: nn.Module) -> HebbianLearner:
        return HebbianLearner(made, rule, lr=1e-3, exclude=["classifier"])

    images = torch.randn(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    subject = Subject(network, learner, images, torch.zeros(64, dtype=torch.int64), rule)
    assert flops(hebbian_step(subject)) <= most * flops(minimum(subject))
    assert peak_bytes(hebbian_step(subject), CPU) <= 0.5 * peak_bytes(backprop(subject), CPU)


def test_groups_and_maps_of_vectors_have_a_minimum() -> None:
    """Depthwise convolutions, and linear layers over positions, as in convnext."""

    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), Permute(), nn.Linear(4, 6))

    images = torch.randn(2, 4, 6, 6)
    subject = Subject(network, lambda made: HebbianLearner(made, "hpca", lr=0.1), images, torch.zeros(2), "hpca")
    product = 2 * 2 * 16 * 4 * 6  # of the linear layer: 2 images of 4 x 4 positions
    assert flops(minimum(subject)) > 2 * product
    assert naive_form(subject) == {}


def test_the_naive_form_runs_on_as_many_images_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of eight images fit the convolution, 16 patches x 3 units x 18 inputs each; all fit the small layer."""
    layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 2))
    images = torch.randn(8, 2, 6, 6)
    subject = Subject(lambda: layers, lambda made: HebbianLearner(made, "hpca", lr=0.1), images, torch.zeros(8), "hpca")
    monkeypatch.setattr(naive, "BYTES", 4 * 3 * 16 * 3 * 18)
    found = naive_form(subject)
    assert {name: scale for name, (_, scale) in found.items()} == {"naive 0": 8 / 3, "naive 2": 1.0}
    for work, _ in found.values():
        work()


class Permute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


def test_layer_prints_a_table(bench: Bench) -> None:
    code, out, err = bench("layer", "model.width=0.05", "batch_size=4", "repeats=1", "gpu=cpu")
    assert code == 0, err
    assert "conv1.0" in out
    assert "fc5.1" in out


@pytest.mark.slow
def test_data_sets_the_loader_beside_the_step(bench: Bench, tmp_path: Path) -> None:
    root = tmp_path / "images"
    class_folders(root / "train", {"a": 6, "b": 6})
    class_folders(root / "test", {"a": 2, "b": 2}, first=12)
    file = tmp_path / "data.json"
    words = ("model.width=0.05", "batch_size=4", "repeats=2", "gpu=cpu", f"json={file}")
    code, out, err = bench("data", *words)
    assert code == 0, err
    assert "dataset.in_memory=false measures reading and decoding" in out
    assert list(json.loads(file.read_text())["workers"]) == ["0"]
    code, out, err = bench("data", *words, "dataset=digits", "dataset.in_memory=false")
    assert code == 0, err
    assert "the images are in memory, as those of this data set always are" in out
    folder = ("dataset=image_folder", f"dataset.root={root}", "dataset.in_memory=false", "dataset.validation_samples=2")
    code, out, err = bench("data", *words, *folder)
    assert code == 0, err
    result = json.loads(file.read_text())
    assert list(result["workers"])[:2] == ["0", "1"]
    step, alone = result["step_images_per_second"], result["workers"]["0"]
    assert alone["waiting"] == pytest.approx(step / (step + alone["images_per_second"]))
    each = f"{result['workers']['1']['images_per_second']:,.0f}"
    assert any(line.split()[:3] == ["1", each, each] for line in out.splitlines()), "no pace a worker"
    GlobalHydra.instance().clear()
    assert cli.run(["data", "prepare", *folder, f"out={tmp_path / 'packed'}"]) == 0
    code, out, err = bench("data", *words, *folder, f"dataset.root={tmp_path / 'packed'}")
    assert code == 0, err
    assert list(json.loads(file.read_text())["workers"])[:2] == ["0", "1"]


def test_the_step_is_taken_in_the_precision_asked_for() -> None:
    kinds: list[torch.dtype] = []

    def network() -> nn.Module:
        layer = nn.Linear(4, 3)
        layer.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
        return nn.Sequential(layer)

    def learner(made: nn.Module) -> HebbianLearner:
        return HebbianLearner(made, "hpca", lr=0.1)

    images, labels = torch.randn(5, 4), torch.zeros(5, dtype=torch.int64)
    for work in (hebbian_step, backprop):
        work(Subject(network, learner, images, labels, "hpca"))()
        work(Subject(network, learner, images, labels, "hpca", partial(torch.autocast, "cpu", torch.bfloat16)))()
    assert kinds == [torch.float32, torch.bfloat16] * 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["step", "rule=vae"], "rule=vae is no Hebbian rule; choose one of: hpca"),
        (["data", "dataset.size=0"], "dataset.size must be at least 1"),
        (["data", "size=16"], "size: bench data has the images of a data set; set dataset.size"),
        (["stop"], "what must be one of step, layer, scale, traffic, data, run, readout"),
        (["step", "repeets=3"], "did you mean repeats"),
        (["step", "batch_size=1"], "batch_size must be at least 2"),
        (["step", "rule=nope"], "rule can be: bcm"),
        (["layer", "rule=swta", "rule.options.temperature=high"], "temperature must be a number, not 'high'"),
    ],
)
def test_bad_input(bench: Bench, words: list[str], expected: str) -> None:
    code, _, err = bench(*words)
    assert code == 2
    assert err.count("\n") == 1
    assert expected in err


def test_counted_work_is_what_is_known() -> None:
    a, b, c = torch.randn(2, 3), torch.randn(3, 4), torch.randn(2, 4)
    assert flops(lambda: a @ b) == 2 * 2 * 3 * 4
    assert flops(lambda: c.addmm_(a, b)) == 2 * 2 * 3 * 4
    many = torch.randn(5, 2, 3)
    assert flops(lambda: torch.randn(5, 2, 4).baddbmm_(many, b.expand(5, 3, 4))) == 5 * 2 * 2 * 3 * 4
    layer, x = nn.Conv2d(2, 5, 3, bias=False), torch.randn(7, 2, 6, 6)
    assert flops(lambda: layer(x)) == 2 * 7 * 16 * 5 * 18


def test_peak_memory_is_the_most_held_at_a_time() -> None:
    def work() -> None:
        a = torch.zeros(1 << 20)
        del a
        b = torch.zeros(1 << 19), torch.zeros(1 << 18)
        del b

    assert peak_bytes(work, CPU) == pytest.approx(4 << 20, rel=0.01)


def test_medians_leave_the_first_round_out() -> None:
    calls: list[str] = []
    median_ms({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, CPU)
    assert calls == ["a", "b"] * 3


def test_ratios_are_of_times_in_the_same_repeat() -> None:
    """The ratios do not contain noise that all contenders of a repeat share."""
    assert paired_quartiles([2, 20, 200, 2000, 3], [1, 10, 100, 1000, 1]) == [2, 2, 2]
    assert paired_quartiles([3], [2]) == [1.5, 1.5, 1.5]


@pytest.mark.parametrize("rule", ["hpca", "swta"])
def test_the_naive_form_is_the_rule(rule: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(2, 4, 3, bias=False).double(), torch.randn(2, 2, 5, 5, dtype=torch.float64)
    weight = layer.weight.detach()
    options = {"damping": 0.0} if rule == "hpca" else {}
    wanted = reference.update(layer, x, rule, **options)
    found = NAIVE[rule](unfolded(layer, x), weight.flatten(1))
    torch.testing.assert_close(found.view_as(wanted), wanted)


@pytest.mark.slow
def test_scale_is_measured_and_drawn(bench: Bench, tmp_path: Path) -> None:
    words = ("rule=oja", "model.width=0.05", "batch_size=4", "repeats=1", "gpu=cpu", f"json={tmp_path / 'oja.json'}")
    code, _, err = bench("scale", *words)
    assert code == 0, err
    result = json.loads((tmp_path / "oja.json").read_text())
    assert result["batch_size"] == 4
    assert list(result["axes"]["units"]) == ["64", "256", "1024", "4096", "16384"]
    assert result["exponents"]["units"]["work"] == pytest.approx(1, abs=0.01)
    assert result["exponents"]["batch_size"]["work"] == pytest.approx(1, abs=0.1)
    assert result["exponents"]["threads"]["work"] == pytest.approx(0, abs=0.01)
    script = Path(__file__).parents[2] / "scripts" / "plot_scale.py"
    subprocess.run([sys.executable, str(script), tmp_path / "oja.json", tmp_path / "scale.svg"], check=True)
    drawn = (tmp_path / "scale.svg").read_text()
    assert all(f">{text}<" in drawn for text in ("oja", "16,384", "images in a batch, conv6", "ms per step"))
    assert ">units of a wide layer, 4 images<" in drawn
    (tmp_path / "other.json").write_text("{}")
    other = [sys.executable, str(script), str(tmp_path / "other.json"), str(tmp_path / "other.svg")]
    done = subprocess.run(other, capture_output=True, text=True)
    assert done.returncode == 2
    assert "other.json: not what `fasthebb bench scale json=" in done.stderr
    assert not (tmp_path / "other.svg").exists()


def test_traffic_counts_what_operations_read_and_write() -> None:
    a, b = torch.ones(10, 20), torch.ones(20, 30)
    assert traffic(lambda: a + a.view(10, 20)[:, :1].expand(10, 20)) == (0, 0, 4 * 200 + 4 * 10, 4 * 200)
    assert traffic(lambda: a @ b) == (4 * (200 + 600), 4 * 300, 0, 0)
    assert traffic(lambda: a.T.unsqueeze(0).expand(5, 20, 10)) == (0, 0, 0, 0)
    assert traffic(lambda: torch.zeros(7)) == (0, 0, 0, 4 * 7)
    assert traffic(lambda: a.add_(1)) == (0, 0, 4 * 200, 4 * 200)
    assert traffic(lambda: a.copy_(torch.ones(10, 20))) == (0, 0, 4 * 200, 4 * 200 + 4 * 200)
    assert traffic(lambda: torch.add(a, 1, out=torch.empty(10, 20))) == (0, 0, 4 * 200, 4 * 200)


@pytest.mark.slow
def test_a_rule_without_waste_passes_as_often_as_it_must(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "traffic.json"
    code, out, err = bench("traffic", "batch_size=2", "size=24", "gpu=cpu", f"json={file}")
    assert code == 0, err
    passes = json.loads(file.read_text())["passes"]
    assert passes.keys() == RULES.keys()
    for rule, counted in passes.items():
        assert counted["read"] >= counted["least_read"], rule
        assert counted["written"] >= counted["least_written"], rule
    assert (passes["hpca"]["read"], passes["hpca"]["written"]) == pytest.approx((1, 1), abs=0.02)
    assert (passes["gha"]["least_read"], passes["gha"]["least_written"]) == (0, 0)
    assert "kmeans" in out


@pytest.mark.slow
def test_on_a_gpu_hpca_works_little_more_than_the_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces are large there, but not so large that most of the work is on pairs that the mask leaves out."""
    monkeypatch.setattr(tiles, "CPU", tiles.GPU)

    def network() -> nn.Module:
        return conv6(channels=3, size=32, classes=10).train()

    def learner(network: nn.Module) -> HebbianLearner:
        return HebbianLearner(network, "hpca", lr=1e-3, exclude=["classifier*"])

    subject = Subject(network, learner, torch.randn(64, 3, 32, 32), torch.zeros(64, dtype=torch.int64), "hpca")
    assert flops(hebbian_step(subject)) < 1.39 * flops(minimum(subject))
