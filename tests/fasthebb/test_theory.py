"""What the rules are for: hpca finds principal axes in order, swta the centres of clusters."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fasthebb.learner import HebbianLearner
from fasthebb.settings import RULES, StepSetting


def learn(
    weight_KD: Tensor,
    x_ND: Tensor,
    rule: str,
    *,
    steps: int,
    lr: float,
    step: StepSetting | None = None,
    **options: Any,
) -> Tensor:
    """Weights of one linear layer after steps on all the data."""
    units, inputs = weight_KD.shape
    layer = nn.Linear(inputs, units, bias=False, dtype=weight_KD.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight_KD)
    setting = RULES[rule].with_options(**options)
    learner = HebbianLearner(nn.Sequential(layer), setting, lr=lr, step=step or StepSetting())
    for _ in range(steps):
        learner.observe(x_ND)
        learner.step()
    return layer.weight.detach()


def cosines(a_KD: Tensor, b_KD: Tensor) -> Tensor:
    """Cosine of row k of a with row k of b."""
    return torch.nn.functional.cosine_similarity(a_KD, b_KD)


def symmetric_gaussian(variances: list[float], *, seed: int) -> tuple[Tensor, Tensor]:
    """Data (N, D) that contains -x for every x, and its principal axes (D, D) in order of variance."""
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
    """Two units for each axis, one for each direction; axes in order of variance; weight vectors of length 1.

    A rectified unit responds to one half-space only. The data contains -x for every x, so the half-space has half of
    the second moments C. Hence unit 1 follows Oja's rule at half speed, dw = (C w - (w.Cw) w) / 2, and finds the first
    axis e_1, with length 1. It reconstructs only its own half-space: y_1 w_1 = relu(x.e_1) e_1. In the other half,
    e_1 is still the direction of largest variance, so unit 2 finds -e_1. Together they reconstruct x.e_1 e_1 exactly.
    The rest of the data has no component along e_1, and units 3 and 4 find the next axis in the same way.
    """
    x, axes = symmetric_gaussian([1, 1 / 4, 1 / 16, 1 / 64, 1 / 256], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(6, 5, generator=generator, dtype=torch.float64) / 5**0.5
    lr, steps = (0.1, 300) if denominator == "power" else (1.0, 1500)  # divided by N, a unit's speed is its variance
    w = learn(start, x, "hpca", steps=steps, lr=lr, denominator=denominator, damping=0.01)
    assert cosines(w[0::2], axes[:3]).abs().min() > 0.99
    assert cosines(w[0::2], w[1::2]).max() < -0.99
    torch.testing.assert_close(w.norm(dim=1), torch.ones(6, dtype=torch.float64), rtol=0, atol=0.01)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_swta_finds_the_centres_of_clusters(seed: int) -> None:
    """Each unit starts as one noisy sample of a cluster and ends as the cluster's mean, in direction and length.

    Like k-means the rule finds a local optimum, so each cluster has a unit that starts nearer to it than the others.
    Scores depend only on directions, so clusters may differ in length.
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


VARIANCES = [1, 1 / 2, 1 / 4, 1 / 8, 1 / 16]
UNIT_LENGTH = StepSetting(normalise=True)


def random_start(units: int, inputs: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    start: Tensor = torch.randn(units, inputs, generator=generator, dtype=torch.float64)
    return start * float(inputs**-0.5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_oja_and_normalised_hebb_find_the_first_axis(seed: int) -> None:
    x, axes = symmetric_gaussian(VARIANCES, seed=seed)
    for rule, setting in (("oja", StepSetting()), ("hebb", UNIT_LENGTH)):
        w = learn(random_start(3, 5, seed), x, rule, steps=400, lr=0.2, step=setting)
        assert cosines(w, axes[:1].expand(3, 5)).abs().min() > 0.99
        torch.testing.assert_close(w.norm(dim=1), torch.ones(3, dtype=torch.float64), rtol=0, atol=0.01)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gha_finds_the_axes_in_order(seed: int) -> None:
    x, axes = symmetric_gaussian(VARIANCES, seed=seed)
    w = learn(random_start(3, 5, seed), x, "gha", steps=1500, lr=0.2)
    assert cosines(w, axes[:3]).abs().min() > 0.99


@pytest.mark.parametrize("rule", ["hpca_tanh", "hpca_adaptive"])
def test_hpca_on_tanh_finds_the_axes_in_order(rule: str) -> None:
    """For small x, tanh(x.w) is nearly x.w, and the rule is nearly gha."""
    x, axes = symmetric_gaussian(VARIANCES, seed=0)
    scale = 0.1 if rule == "hpca_tanh" else 1.0
    w = learn(random_start(3, 5, 0), scale * x, rule, steps=1000, lr=0.05)
    assert cosines(w, axes[:3]).abs().min() > 0.97


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_subspace_finds_the_span_of_the_first_axes(seed: int) -> None:
    x, axes = symmetric_gaussian(VARIANCES, seed=seed)
    w = learn(random_start(2, 5, seed), x, "subspace", steps=1500, lr=0.2)
    torch.testing.assert_close(w @ w.T, torch.eye(2, dtype=torch.float64), rtol=0, atol=0.01)
    assert (w @ axes[:2].T).square().sum() > 2 * 0.99**2  # nearly all of each unit lies in the span


def test_instar_moves_to_the_mean_of_what_it_responds_to() -> None:
    generator = torch.Generator().manual_seed(0)
    centre = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    x = centre + 0.1 * torch.randn(500, 4, generator=generator, dtype=torch.float64)
    w = learn(centre.expand(1, 4) * 0.3, x, "instar", steps=300, lr=0.1)
    weighed = ((x @ w[0]).unsqueeze(1) * x).sum(0) / (x @ w[0]).sum()
    torch.testing.assert_close(w[0], weighed, rtol=0, atol=1e-3)


def amari_index(p: Tensor) -> float:
    """0 for a scaled permutation; Amari, Cichocki, Yang 1996, divided by 2 K (K - 1)."""
    p, k = p.abs(), len(p)
    rows = (p / p.amax(1, keepdim=True)).sum() - k
    columns = (p / p.amax(0, keepdim=True)).sum() - k
    return float(rows + columns) / (2 * k * (k - 1))


def mixture(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Whitened mixtures (N, 3) of Laplacian sources, their mixing matrix, and an orthogonal start."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(4000, 3, generator=generator, dtype=torch.float64) - 0.5
    sources = -uniform.sign() * (1 - 2 * uniform.abs()).log() / 2**0.5  # of variance 1
    mixing = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    x = (sources - sources.mean(0)) @ mixing.T
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    whitening = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    start = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    return x @ whitening, whitening @ mixing, start


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_ica_unmixes_super_gaussian_sources(normalised: bool, seed: int) -> None:
    """Laplacian sources, whitened mixtures: W A becomes a scaled permutation."""
    x, mixing, start = mixture(seed)
    setting = UNIT_LENGTH if normalised else StepSetting()
    w = learn(start, x, "ica", steps=600, lr=0.2, step=setting, normalised=normalised)
    assert amari_index(start @ mixing) > 0.15
    assert amari_index(w @ mixing) < 0.05


def test_hica_makes_each_unit_independent_of_those_before_it() -> None:
    """E[tanh(s_i) s_j] = 0 for j < i and 1 for j = i. No unit is before unit 1, so it keeps its direction."""
    x, _, start = mixture(0)
    w = learn(start, x, "hica", steps=1500, lr=0.2)
    s = x @ w.T
    moments = s.tanh().T @ s / len(s)
    torch.testing.assert_close(moments.tril(), torch.eye(3, dtype=torch.float64), rtol=0, atol=0.01)
    assert cosines(w[:1], start[:1]) > 0.9999


@pytest.mark.parametrize("rule", ["hwta", "kwta", "pswta"])
def test_hard_competition_ends_at_the_centres_of_kmeans(rule: str) -> None:
    """Each unit is the mean of the patches that it wins: the fixed point of Lloyd's algorithm, with cosines."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.linalg.qr(torch.randn(8, 4, generator=generator, dtype=torch.float64))[0].T * 2
    clusters = centres + 0.2 * torch.randn(200, 4, 8, generator=generator, dtype=torch.float64)
    choices: dict[str, dict[str, Any]] = {"kwta": {"k": 1}, "pswta": {"power": 0.02}, "hwta": {}}
    w = learn(clusters[0], clusters.reshape(-1, 8), rule, steps=60, lr=0.5, **choices[rule])
    torch.testing.assert_close(w, clusters.mean(0), rtol=0, atol=0.02)


def test_kmeans_does_steps_of_lloyds_algorithm_with_distances() -> None:
    """The clusters differ in length alone, which no rule by cosine could tell apart; at rate 1 a step gives means."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[1.0], [3.0], [6.0]], dtype=torch.float64) * torch.ones(4, dtype=torch.float64)
    clusters = centres + 0.2 * torch.randn(50, 3, 4, generator=generator, dtype=torch.float64)
    w = learn(clusters[0], clusters.reshape(-1, 4), "kmeans", steps=1, lr=1.0)
    torch.testing.assert_close(w, clusters.mean(0))


def test_the_k_winners_share_every_patch() -> None:
    """With as many winners as units, all units move to the mean of all patches."""
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = learn(random_start(3, 4, 0), x, "kwta", steps=100, lr=0.5, k=3)
    torch.testing.assert_close(w, x.mean(0).expand(3, 4), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_bcm_becomes_selective() -> None:
    """There are four orthogonal, equally frequent patterns; in the end each unit responds to only one."""
    x = torch.eye(4, dtype=torch.float64)
    w = learn(random_start(6, 4, 3).abs(), x, "bcm", steps=3000, lr=0.1)
    responses = (x @ w.T).clamp_min(0)
    selectivity = 1 - responses.mean(0) / responses.amax(0)
    assert selectivity.min() > 0.74  # 1 - 1/4 where three of four are silent
    torch.testing.assert_close(responses.amax(0), torch.full((6,), 4.0, dtype=torch.float64), rtol=0.05, atol=0)


@pytest.mark.slow
def test_softhebb_weights_settle_at_length_1() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    start = random_start(5, 6, 1) * 4
    w = learn(start, x, "softhebb", steps=2000, lr=0.02, step=StepSetting(norm_power=0.5))
    assert (start.norm(dim=1) - 1).abs().min() > 0.5
    torch.testing.assert_close(w.norm(dim=1), torch.ones(5, dtype=torch.float64), rtol=0, atol=0.15)
