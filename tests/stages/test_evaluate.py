"""Evaluation: the confusion matrix agrees with the accuracy."""

from collections.abc import Callable

import pytest
import torch

from fasthebb_cli.stages.scores import Confusion
from tests.conftest import Ran


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
    counts = torch.tensor(results["confusion"])
    assert int(counts.sum()) == results["samples"]
    assert float(counts.diagonal().sum() / counts.sum()) == pytest.approx(results["top1"])
    assert results["classes"] == [str(digit) for digit in range(10)]
    assert results["top1_by_class"][3] == pytest.approx(float(counts[3, 3] / counts[3].sum()))
