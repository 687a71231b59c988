"""The naive form of hpca and swta: every patch unfolded, and an update (K, D) for every patch.

It is for comparison only; the loops that check the engine are in the tests.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasthebb_cli.bench.measure import Work
from fasthebb_cli.bench.minimum import layer_inputs
from fasthebb_cli.bench.subject import Subject

BYTES = 1 << 29  # of one tensor (N, K, D) at most: the naive form runs on as many images as that allows
Layer = nn.Linear | nn.Conv2d


def unfolded(layer: Layer, x: Tensor) -> Tensor:
    """Patches (N, D) of a layer's input."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    assert not isinstance(layer.padding, str)
    columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])


def hpca(x_ND: Tensor, w_KD: Tensor) -> Tensor:
    """dW (K, D). Every patch's reconstruction by the first 1, 2 .. K units is written out, (N, K, D)."""
    y_NK = (x_ND @ w_KD.T).relu()
    reconstruction_NKD = (y_NK.unsqueeze(2) * w_KD).cumsum(1)
    update_NKD = y_NK.unsqueeze(2) * (x_ND.unsqueeze(1) - reconstruction_NKD)
    return update_NKD.sum(0) / y_NK.square().sum(0).clamp_min(1e-12).unsqueeze(1)


def swta(x_ND: Tensor, w_KD: Tensor, temperature: float = 0.02) -> Tensor:
    """dW (K, D). Every patch's difference from every unit is written out, (N, K, D)."""
    cosine_NK = F.normalize(x_ND) @ F.normalize(w_KD).T
    r_NK = torch.softmax(((cosine_NK + 1) / 2).square() / temperature, 1)
    update_NKD = r_NK.unsqueeze(2) * (x_ND.unsqueeze(1) - w_KD)
    return (r_NK.unsqueeze(2) * update_NKD).sum(0) / r_NK.sum(0).clamp_min(1e-12).unsqueeze(1)


NAIVE = {"hpca": hpca, "swta": swta}


def naive_form(subject: Subject) -> dict[str, tuple[Work, float]]:
    """The naive form of each layer on as many images as fit, and the ratio of the whole batch to these images.

    Empty for rules other than `NAIVE`, and for layers with groups.
    """
    seen = layer_inputs(subject)
    grouped = any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer, _ in seen.values())
    if subject.rule not in NAIVE or grouped:
        return {}
    found: dict[str, tuple[Work, float]] = {}
    for name, (layer, x) in seen.items():
        w_KD = layer.weight.detach().flatten(1)
        patches = len(unfolded(layer, x[:1]))
        images = max(1, min(len(x), BYTES // (4 * patches * w_KD.numel())))
        found[f"naive {name}"] = partial(_naive, NAIVE[subject.rule], layer, x[:images], w_KD), len(x) / images
    return found


@torch.no_grad()
def _naive(rule: Callable[[Tensor, Tensor], Tensor], layer: Layer, x: Tensor, w_KD: Tensor) -> None:
    rule(unfolded(layer, x), w_KD)
