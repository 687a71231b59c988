"""The naive form of hpca and swta, as one would write it down: every patch unfolded, every update its own (K, D).

For comparison only; the loops that check the engine are in the tests.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer = nn.Linear | nn.Conv2d


def unfolded(layer: Layer, x: Tensor) -> Tensor:
    """Patches (N, D)."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    assert not isinstance(layer.padding, str)
    columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])


def hpca(x_ND: Tensor, w_KD: Tensor) -> Tensor:
    """dW with every patch's reconstruction by every prefix of the units written out, (N, K, D)."""
    y_NK = (x_ND @ w_KD.T).relu()
    reconstruction_NKD = (y_NK.unsqueeze(2) * w_KD).cumsum(1)
    update_NKD = y_NK.unsqueeze(2) * (x_ND.unsqueeze(1) - reconstruction_NKD)
    return update_NKD.sum(0) / y_NK.square().sum(0).clamp_min(1e-12).unsqueeze(1)


def swta(x_ND: Tensor, w_KD: Tensor, temperature: float = 0.02) -> Tensor:
    """dW with every patch's distance from every unit written out, (N, K, D)."""
    cosine_NK = F.normalize(x_ND) @ F.normalize(w_KD).T
    r_NK = torch.softmax(((cosine_NK + 1) / 2).square() / temperature, 1)
    update_NKD = r_NK.unsqueeze(2) * (x_ND.unsqueeze(1) - w_KD)
    return (r_NK.unsqueeze(2) * update_NKD).sum(0) / r_NK.sum(0).clamp_min(1e-12).unsqueeze(1)


NAIVE = {"hpca": hpca, "swta": swta}
