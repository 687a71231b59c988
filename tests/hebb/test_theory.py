"""What the rules are for: hpca finds principal axes in order, swta the centres of clusters."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fasthebb_cli.hebb.learner import HebbianLearner


def learn(weight_KD: Tensor, x_ND: Tensor, rule: str, *, steps: int, lr: float, **options: Any) -> Tensor:
    """Weights of one linear layer after steps on all the data."""
    units, inputs = weight_KD.shape
    layer = nn.Linear(inputs, units, bias=False, dtype=weight_KD.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight_KD)
    learner = HebbianLearner(nn.Sequential(layer), rule, lr=lr, options=options)
    for _ in range(steps):
        learner.observe(x_ND)
        learner.step()
    return layer.weight.detach()


def cosines(a_KD: Tensor, b_KD: Tensor) -> Tensor:
    """Cosine of row k of a with row k of b."""
    return torch.nn.functional.cosine_similarity(a_KD, b_KD)


def symmetric_gaussian(variances: list[float], *, seed: int) -> tuple[Tensor, Tensor]:
    """Data (N, D), mirrored so that it is exactly as likely as its negative, and its principal axes (D, D) in order."""
    generator = torch.Generator().manual_seed(seed)
    size = len(variances)
    rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    x = torch.randn(300, size, generator=generator, dtype=torch.float64) * torch.tensor(variances).sqrt() @ rotation
    x = torch.cat([x, -x])
    _, axes = torch.linalg.eigh(x.T @ x)
    return x, axes.flip(1).T


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("denominator", ["patches", "power"])
def test_hpca_finds_the_principal_axes_in_order(denominator: str, seed: int) -> None:
    """Two units an axis, one for either direction, axes in order of variance, and lengths of 1.

    A rectified unit responds to one half-space only. On data as likely as its negative the half-space has half the
    second moments C of the whole, so unit 1 obeys Oja's rule at half speed, dw = (C w - (w.Cw) w) / 2: the first axis,
    of length 1. It rebuilds only its own half-space, y_1 w_1 = relu(x.e_1) e_1, and what it leaves of the other half
    is still the strongest thing to be seen: unit 2 takes -e_1. Together they rebuild x.e_1 e_1 exactly, and the rest
    of the data, free of e_1, is to units 3 and 4 what all of it was to 1 and 2. Hence mirrored data, zero-mean and
    symmetric to the last digit, and two units an axis.
    """
    x, axes = symmetric_gaussian([1, 1 / 4, 1 / 16, 1 / 64, 1 / 256], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(6, 5, generator=generator, dtype=torch.float64) / 5**0.5
    lr, steps = (0.1, 300) if denominator == "power" else (1.0, 1500)  # over N a unit's pace is its variance
    w = learn(start, x, "hpca", steps=steps, lr=lr, denominator=denominator)
    assert cosines(w[0::2], axes[:3]).abs().min() > 0.99
    assert cosines(w[0::2], w[1::2]).max() < -0.99
    torch.testing.assert_close(w.norm(dim=1), torch.ones(6, dtype=torch.float64), rtol=0, atol=0.01)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_swta_finds_the_centres_of_clusters(seed: int) -> None:
    """Each unit starts as one noisy sample of a cluster, and ends as the cluster's mean: direction and length.

    Like k-means the rule finds a local optimum, so every cluster is given a unit that is nearer to it than the others.
    Scores depend on directions alone, so clusters may differ in length.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = torch.linalg.qr(torch.randn(8, 4, generator=generator, dtype=torch.float64))[0].T
    centres *= torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64)
    noise = torch.randn(200, 4, 8, generator=generator, dtype=torch.float64) * 0.15 * centres.norm(dim=1, keepdim=True)
    clusters = centres + noise  # (samples, cluster, D)
    start, means = clusters[0], clusters.mean(0)
    assert cosines(start, means).min() < 0.96
    w = learn(start, clusters.reshape(-1, 8), "swta", steps=100, lr=0.5)
    assert cosines(w, means).min() > 0.99
    torch.testing.assert_close(w.norm(dim=1), means.norm(dim=1), rtol=0.01, atol=0)
