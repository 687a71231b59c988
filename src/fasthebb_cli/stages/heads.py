"""Heads: classifiers, and an image search, that learn from one layer's features and are scored on test images.

Shapes: N training and M test images, F features, C classes. A head returns its accuracy, or its mean average precision,
in [0, 1], by name. scikit-learn and torchmetrics are imported only by the heads that need them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasthebb import engine
from fasthebb.rules import hebbian_classifier
from fasthebb_cli.errors import RunError
from fasthebb_cli.settings.probe import ProbeConfig
from fasthebb_cli.stages.optimizers import in_one_pass
from fasthebb_cli.stages.schedules import set_rate

BATCH = 64
MINIMUM_STEPS = 500


@dataclass(frozen=True)
class Samples:
    """Features of one layer, (N, F) and (M, F), with labels (N,) and (M,), on the CPU."""

    train_NF: Tensor
    labels_N: Tensor
    test_MF: Tensor
    labels_M: Tensor
    classes: int


def linear(samples: Samples, settings: ProbeConfig, device: torch.device) -> dict[str, float]:
    """A linear classifier, or one with a hidden layer, on standardised features, by Adam and cross-entropy."""
    mean, std = samples.train_NF.mean(0), samples.train_NF.std(0, correction=0)
    scale = torch.where(std > 1e-6 * std.max(), 1 / std, 0)
    train_NF = on_device_if_it_fits(samples.train_NF, device)
    mean, scale = mean.to(train_NF.device), scale.to(train_NF.device)
    head = _head(samples.train_NF.shape[1], samples.classes, settings).to(device)
    optimizer = torch.optim.Adam(
        head.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=in_one_pass(head.parameters())
    )
    count = len(samples.train_NF)
    steps = math.ceil(count / BATCH)
    epochs = linear_epochs(count, settings)
    for epoch in range(epochs):
        for step, chosen in enumerate(torch.randperm(count).split(BATCH)):
            set_rate(optimizer, settings.schedule, step, steps, epoch, epochs)
            x = ((train_NF[chosen.to(train_NF.device)] - mean) * scale).to(device)
            loss = F.cross_entropy(head(x), samples.labels_N[chosen].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    head.eval()
    with torch.no_grad():
        parts = [head(((x.to(mean.device) - mean) * scale).to(device)).cpu() for x in samples.test_MF.split(1024)]
    scores = torch.cat(parts)
    if not scores.isfinite().all():
        raise RunError("a linear classifier of the probe diverged; lower probe.lr")
    best = scores.topk(min(5, samples.classes), dim=1).indices == samples.labels_M.unsqueeze(1)
    return {"top1": float(best[:, 0].float().mean()), "top5": float(best.any(1).float().mean())}


def linear_epochs(count: int, settings: ProbeConfig) -> int:
    """How often the linear classifier sees each of its training images: more often if they are few."""
    return max(settings.epochs, math.ceil(MINIMUM_STEPS / math.ceil(count / BATCH)))


def on_device_if_it_fits(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device, unless they would take more than half of a GPU's free memory: then where they are."""
    if device.type == "cuda" and values.numel() * values.element_size() > torch.cuda.mem_get_info(device)[0] / 2:
        return values
    return values.to(device)


def hebbian(samples: Samples, settings: ProbeConfig, device: torch.device) -> dict[str, float]:
    """The Hebbian classifier, learnt in one step: a class's weights w are its mean input, its score x.w / |w|."""
    layer = nn.Linear(samples.train_NF.shape[1], samples.classes, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        teacher_N1C = F.one_hot(samples.labels_N, samples.classes).unsqueeze(1).float()
        seen = engine.sums(layer, samples.train_NF, hebbian_classifier(teacher_N1C))
        layer.weight.sub_(seen.gradient_(layer.weight))
        scores = engine.project_(layer, layer(samples.test_MF))
    return {"hebbian": float((scores.argmax(1) == samples.labels_M).float().mean())}


def knn(samples: Samples, settings: ProbeConfig, device: torch.device) -> dict[str, float]:
    """k nearest neighbours by cosine; their votes are weighted by distance."""
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = min(settings.neighbours, len(samples.train_NF))
    classifier = KNeighborsClassifier(neighbours, metric="cosine", weights="distance", algorithm="brute")
    return {"knn": _score(classifier, samples)}


def svm(samples: Samples, settings: ProbeConfig, device: torch.device) -> dict[str, float]:
    """A support vector machine with the Gaussian kernel, in the Nystroem approximation."""
    from sklearn.kernel_approximation import Nystroem
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    components = min(settings.components, len(samples.train_NF))
    kernel = Nystroem(n_components=components, gamma=1 / samples.train_NF.shape[1], random_state=0)
    classifier = make_pipeline(StandardScaler(), kernel, LinearSVC(dual=False, random_state=0))
    return {"svm": _score(classifier, samples)}


def retrieval(samples: Samples, settings: ProbeConfig, device: torch.device) -> dict[str, float]:
    """Mean average precision of ranking all training images by cosine; the first test images are the queries."""
    from torchmetrics.functional.retrieval import retrieval_average_precision

    gallery_NF = F.normalize(samples.train_NF, dim=1)
    queries_QF = F.normalize(samples.test_MF[: settings.queries], dim=1)
    precisions = [  # + 2: torchmetrics ignores scores below 0
        retrieval_average_precision(gallery_NF @ query_F + 2, samples.labels_N == label)
        for query_F, label in zip(queries_QF, samples.labels_M, strict=False)
    ]
    return {"retrieval": float(torch.stack(precisions).mean())}


Head = Callable[[Samples, ProbeConfig, torch.device], dict[str, float]]
HEADS: dict[str, Head] = {
    "linear": linear,
    "hebbian": hebbian,
    "knn": knn,
    "svm": svm,
    "retrieval": retrieval,
}
NEEDS = {"knn": "sklearn", "svm": "sklearn", "retrieval": "torchmetrics"}  # packages of the extra `probe`


def _head(inputs: int, classes: int, settings: ProbeConfig) -> nn.Sequential:
    dropout = nn.Dropout(settings.dropout)
    if not settings.hidden:
        return nn.Sequential(dropout, nn.Linear(inputs, classes))
    return nn.Sequential(
        dropout, nn.Linear(inputs, settings.hidden), nn.ReLU(), nn.Dropout(settings.dropout),
        nn.Linear(settings.hidden, classes),
    )  # fmt: skip


def _score(classifier: Any, samples: Samples) -> float:
    classifier.fit(samples.train_NF.numpy(), samples.labels_N.numpy())
    return float(classifier.score(samples.test_MF.numpy(), samples.labels_M.numpy()))
