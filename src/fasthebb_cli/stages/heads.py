"""What features are worth: classifiers and a search on given features, each from training to test images.

Shapes: N training and M test images, F features, C classes. A head returns its share of right answers, or its mean
average precision, in [0, 1]. scikit-learn and torchmetrics do what they do well; they are imported when asked for.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasthebb import engine
from fasthebb.nets.readout import output_layer
from fasthebb.rules import hebbian_classifier
from fasthebb_cli.compute import processes
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.probe import ProbeConfig
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
    optimizer = torch.optim.Adam(head.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    count = len(samples.train_NF)
    steps = math.ceil(count / BATCH)
    epochs = max(settings.epochs, math.ceil(MINIMUM_STEPS / steps))
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
    best = torch.cat(parts).topk(min(5, samples.classes), dim=1).indices == samples.labels_M.unsqueeze(1)
    return {"top1": float(best[:, 0].float().mean()), "top5": float(best.any(1).float().mean())}


def on_device_if_it_fits(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device, or on a GPU of which they would take more than half of what is free where they are."""
    if device.type == "cuda" and values.numel() * values.element_size() > torch.cuda.mem_get_info(device)[0] / 2:
        return values
    return values.to(device)


def hebbian(samples: Samples, settings: ProbeConfig, device: torch.device) -> dict[str, float]:
    """The Hebbian classifier: a class's weights are the mean of its inputs, its score x.w / |w|; learnt in one step."""
    layer = nn.Linear(samples.train_NF.shape[1], samples.classes, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        teacher_N1C = F.one_hot(samples.labels_N, samples.classes).unsqueeze(1).float()
        seen = engine.sums(layer, samples.train_NF, hebbian_classifier(teacher_N1C))
        layer.weight.sub_(seen.gradient_(layer.weight))
        scores = engine.project_(layer, layer(samples.test_MF))
    return {"hebbian": float((scores.argmax(1) == samples.labels_M).float().mean())}


class ClassMeans:
    """The same for a network's own classifier, batch by batch: after any number of passes it compares with class means.

    The scores x.w / |w| don't ask for a mean's length, so sums (C, F) are kept, and each step makes the weights their
    directions. A class without an image scores 0. The bias is 0.

    Raises:
        InputError: the network's classifier has no linear layer.
    """

    def __init__(self, network: nn.Module) -> None:
        try:
            _, self.layer = output_layer(network)
        except ValueError as error:
            raise InputError(f"finetune.classifier=hebbian: {error}") from error
        self.sums_CF = torch.zeros_like(self.layer.weight)
        self._inputs: list[Tensor] | None = None
        self._hook = self.layer.register_forward_pre_hook(lambda _, inputs: self._keep(inputs[0]))

    def listen(self) -> None:
        """The next images that the network sees are to learn from."""
        self._inputs = []

    @torch.no_grad()
    def learn(self, labels_B: Tensor) -> None:
        """From the batch that the network has seen since `listen`."""
        assert self._inputs is not None
        inputs_BF = torch.cat(self._inputs).to(self.sums_CF.dtype)
        self._inputs = None
        self.sums_CF += processes.summed(torch.zeros_like(self.sums_CF).index_add_(0, labels_B, inputs_BF))
        self.layer.weight.copy_(F.normalize(self.sums_CF, dim=1))
        if self.layer.bias is not None:
            self.layer.bias.zero_()

    def finish(self) -> None:
        self._hook.remove()

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums_CF}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sums_CF.copy_(state["sums"])

    def _keep(self, inputs: Tensor) -> None:
        if self._inputs is not None:
            self._inputs.append(inputs.detach())


def knn(samples: Samples, settings: ProbeConfig, device: torch.device) -> dict[str, float]:
    """The vote of the nearest training images by cosine, weighted by distance."""
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = min(settings.neighbours, len(samples.train_NF))
    classifier = KNeighborsClassifier(neighbours, metric="cosine", weights="distance", algorithm="brute")
    return {"knn": _score(classifier, samples)}


def svm(samples: Samples, settings: ProbeConfig, device: torch.device) -> dict[str, float]:
    """A support vector machine with the Gaussian kernel, by a Nystroem approximation of it."""
    from sklearn.kernel_approximation import Nystroem
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    components = min(settings.components, len(samples.train_NF))
    kernel = Nystroem(n_components=components, gamma=1 / samples.train_NF.shape[1], random_state=0)
    classifier = make_pipeline(StandardScaler(), kernel, LinearSVC(dual=False, random_state=0))
    return {"svm": _score(classifier, samples)}


def retrieval(samples: Samples, settings: ProbeConfig, device: torch.device) -> dict[str, float]:
    """Mean average precision of ranking all training images by cosine, over the first test images of the split."""
    from torchmetrics.functional.retrieval import retrieval_average_precision

    gallery_NF = F.normalize(samples.train_NF, dim=1)
    queries_QF = F.normalize(samples.test_MF[: settings.queries], dim=1)
    precisions = [
        retrieval_average_precision(gallery_NF @ query_F + 2, samples.labels_N == label)  # it ignores scores below 0
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
