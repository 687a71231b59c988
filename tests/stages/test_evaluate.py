"""Evaluation: the confusion matrix agrees with the accuracy."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fasthebb.model_file import load_model_and_card
from fasthebb_cli.data.dataset import load_dataset
from fasthebb_cli.data.transforms import to_float
from fasthebb_cli.stages.scores import Confusion
from tests.conftest import SMALL, Ran, loaded
from tests.disturbed import start


def test_confusion_counts_pairs_and_gives_each_class_its_share() -> None:
    confusion = Confusion(3)
    confusion.add(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    confusion.add(torch.tensor([0]), torch.tensor([2]))
    assert confusion.counts.tolist() == [[1, 1, 1], [0, 1, 0], [0, 0, 0]]
    assert confusion.accuracy() == [pytest.approx(1 / 3), 1.0, None]


@pytest.mark.slow
def test_the_confusion_matrix_adds_up_to_the_accuracy(command: Callable[..., Ran]) -> None:
    ran = command("train", "label_fraction=0.5", "evaluate.batch_size=100")
    assert ran.code == 0, ran.err
    results = ran.results("evaluate")
    assert f"calibration error {100 * results['calibration_error']:.1f} %" in ran.out
    counts = torch.tensor(results["confusion"])
    assert int(counts.sum()) == results["samples"]
    assert float(counts.diagonal().sum() / counts.sum()) == pytest.approx(results["top1"])
    assert results["classes"] == [str(digit) for digit in range(10)]
    assert results["top1_by_class"][3] == pytest.approx(float(counts[3, 3] / counts[3].sum()))


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_the_calibration_error_is_that_of_all_images(tmp_path: Path) -> None:
    """Two processes and small batches sum the same confidences as the definition does over all test images at once."""
    words = ("rule=none", "stages=[finetune,evaluate]", "finetune.epochs=10", "evaluate.batch_size=37")
    life = start(tmp_path / "runs", 1000, *words, size=2)
    assert life.wait() == 0, life.text()
    (measured,) = (tmp_path / "runs").glob("*-evaluate-*")
    (tuned,) = (tmp_path / "runs").glob("*-finetune-*")
    network, card = load_model_and_card(tuned)
    dataset = load_dataset(loaded(*SMALL, "rule=none").dataset, 0)
    with torch.no_grad():
        pixels = dataset.source.read(dataset.test)
        images = to_float(pixels, torch.tensor(card.mean), torch.tensor(card.std))
        confidence_N, predicted_N = network.eval()(images).softmax(1).max(1)
    right_N = (predicted_N == dataset.labels[dataset.test]).float()
    expected = 0.0
    for b in range(15):
        here = (confidence_N > b / 15) & (confidence_N <= (b + 1) / 15)
        expected += float((confidence_N[here] - right_N[here]).sum().abs()) / len(right_N)
    results = json.loads((measured / "results.json").read_text())
    assert 0.01 < expected < 1
    assert results["calibration_error"] == pytest.approx(expected, rel=1e-4)
