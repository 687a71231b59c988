"""The matrix products behind every rule: numerator and denominator of one layer, as sums over patches.

Both are sums for a fixed W, so those of micro-batches or of other processes add up, and one division at the end
gives the update of the whole batch, exactly. Two exact speed-ups (nothing is approximated):

1. No unfolding. For a convolution G^T X is its weight gradient with G in place of the output's gradient.
2. tril(G^T R) W is causal linear attention over units. With fewer patches than it takes to fill the K x K matrix,
   units are done in blocks, each on what the blocks before left of X: O(N K D) instead of O(K^2 D).

Shapes: N patches, D inputs of a unit, K units; B batch, G groups, L positions of a convolution. Knows no rule by name.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasthebb_cli.hebb.responses import PreActivation
from fasthebb_cli.hebb.rules import Terms

BLOCK = 64  # units a block in the blocked form; 16 to 128 are within 5 % of one another

Layer = nn.Linear | nn.Conv2d


@dataclass
class Sums:
    """Numerator (shape of the weight) and denominator (groups, units of a group) of an update, sums over patches.

    `largest` and `tangent` as in Terms: what the division does once all patches are summed.
    """

    numerator: Tensor
    denominator: Tensor
    damping: float = 0.0
    largest: bool = False
    tangent: bool = False

    def __add__(self, other: "Sums") -> "Sums":
        return replace(
            self, numerator=self.numerator + other.numerator, denominator=self.denominator + other.denominator
        )

    @torch.no_grad()
    def update(self, weight: Tensor) -> Tensor:
        """dW = numerator / denominator; a unit whose denominator is 0 has learnt nothing and stays as it is."""
        numerator = self.numerator
        if self.tangent:
            along_K = (numerator * weight).flatten(1).sum(1)
            numerator = numerator - per_row(along_K, weight) * weight
        if self.largest:
            groups = len(self.denominator)
            denominator_GK = numerator.reshape(groups, -1).abs().amax(1, keepdim=True).expand_as(self.denominator)
        else:
            denominator_GK = self.denominator + self.damping * self.denominator.mean(1, keepdim=True)
        denominator_GK = torch.where(denominator_GK == 0, 1, denominator_GK)
        return numerator / per_row(denominator_GK, weight)


def pre_activation(layer: Layer, x: Tensor, output: Tensor) -> PreActivation:
    """The layer's inner products and lengths, from its input and its output: x.w costs nothing twice."""
    groups = _groups(layer)
    dot = output if layer.bias is None else output - _per_unit(layer, layer.bias)
    weight_norm_GK1 = layer.weight.flatten(1).norm(dim=1).reshape(groups, -1, 1)
    return PreActivation(_by_group(layer, dot), weight_norm_GK1, lambda: _patch_norm(layer, x))


def projected(layer: Layer, pre: PreActivation, output: Tensor) -> Tensor:
    """x.w / |w| in shape and type of the output; a bias is added after, as it will be to weights of length 1."""
    norm_GK1 = torch.where(pre.weight_norm_GK1 == 0, 1, pre.weight_norm_GK1)
    projected = (pre.dot_BGKL / norm_GK1).reshape(output.shape)
    if layer.bias is not None:
        projected = projected + _per_unit(layer, layer.bias)
    return projected.to(output.dtype)


def sums(layer: Layer, x: Tensor, terms: Terms) -> Sums:
    """Numerator and denominator of one layer for one batch.

    Args:
        layer: a Linear or Conv2d of any stride, padding, dilation and groups.
        x: what the layer was called with.
        terms: what the rule said of its response.
    """
    covers_input = isinstance(layer, nn.Conv2d) and _covers_input(layer, x)
    if isinstance(layer, nn.Conv2d) and not covers_input:
        numerator = _conv_numerator(layer, x, terms)
    else:
        w_KD = layer.weight.flatten(1)
        x_ND = x.reshape(-1, w_KD.shape[1])
        numerator = _linear_numerator(x_ND, w_KD, terms).view_as(layer.weight)
    return Sums(numerator, _denominator(terms), terms.damping, terms.largest, terms.tangent)


def _linear_numerator(x_ND: Tensor, w_KD: Tensor, terms: Terms) -> Tensor:
    n, k = len(x_ND), len(w_KD)
    d = x_ND.shape[1]
    g_NK = terms.gate.reshape(n, k)
    r_NK = None if terms.recombination is None else terms.recombination.reshape(n, k)
    if terms.towards == "weights":
        attraction_KD = w_KD * n
    elif terms.mask == "tril" and r_NK is not None and k * (n + d) > n * d:
        return _blocked(x_ND, w_KD, g_NK, r_NK)  # forming K x K costs N K^2 + K^2 D, the blocks about N K D
    else:
        attraction_KD = g_NK.T @ x_ND
    if terms.mask == "none":
        return attraction_KD
    if terms.mask == "diag":
        return attraction_KD.addcmul_((g_NK if r_NK is None else g_NK * r_NK).sum(0).unsqueeze(1), w_KD, value=-1)
    assert r_NK is not None
    if terms.mask == "full":
        return attraction_KD.addmm_(g_NK.T, r_NK @ w_KD, alpha=-1)
    return attraction_KD.addmm_(torch.tril(g_NK.T @ r_NK), w_KD, alpha=-1)


def _blocked(x_ND: Tensor, w_KD: Tensor, g_NK: Tensor, r_NK: Tensor) -> Tensor:
    """G^T X - tril(G^T R) W in blocks of units, each on what the blocks before it leave of the patches."""
    rest_ND = x_ND.clone()
    numerator_KD = torch.empty_like(w_KD)
    for start in range(0, len(w_KD), BLOCK):
        block = slice(start, start + BLOCK)
        g_Nb, r_Nb, w_bD = g_NK[:, block], r_NK[:, block], w_KD[block]
        torch.mm(g_Nb.T, rest_ND, out=numerator_KD[block])
        numerator_KD[block].addmm_(torch.tril(g_Nb.T @ r_Nb), w_bD, alpha=-1)
        rest_ND.addmm_(r_Nb, w_bD, alpha=-1)
    return numerator_KD


def _conv_numerator(layer: nn.Conv2d, x: Tensor, terms: Terms) -> Tensor:
    """X is never unfolded; the K x K matrix is small beside the number of positions."""
    gate, recombination = terms.gate, terms.recombination
    w_GKD = layer.weight.reshape(layer.groups, layer.out_channels // layer.groups, -1)
    numerator = layer.weight * (gate.shape[0] * gate.shape[3])
    if terms.towards == "patches":
        x, padding = _padded(layer, x)
        gate_BCHW = gate.reshape(len(x), layer.out_channels, *_output_size(layer, x, padding))
        _, numerator, _ = torch.ops.aten.convolution_backward(
            gate_BCHW, x, layer.weight, None, layer.stride, padding, layer.dilation, False, [0, 0], layer.groups,
            [False, True, False],
        )  # fmt: skip
    if terms.mask == "none":
        return numerator
    if terms.mask == "diag":
        weighed = gate if recombination is None else gate * recombination
        recombined_GKD = weighed.sum((0, 3)).unsqueeze(2) * w_GKD
    else:
        assert recombination is not None
        interaction_GKK = torch.einsum("bgkl,bgjl->gkj", gate, recombination)
        recombined_GKD = (interaction_GKK.tril() if terms.mask == "tril" else interaction_GKK) @ w_GKD
    return numerator - recombined_GKD.view_as(layer.weight)


def _denominator(terms: Terms) -> Tensor:
    gate = terms.gate
    if terms.share is not None:
        return terms.share.sum((0, 3))
    return gate.new_full((gate.shape[1], gate.shape[2]), gate.shape[0] * gate.shape[3])


def _patch_norm(layer: Layer, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        norm_N: Tensor = x.reshape(-1, x.shape[-1]).norm(dim=1)
        return norm_N.reshape(-1, 1, 1, 1)
    x, padding = _padded(layer, x)
    energy_BGHW = x.square().reshape(len(x), layer.groups, -1, *x.shape[2:]).sum(2)
    ones = energy_BGHW.new_ones(layer.groups, 1, *layer.kernel_size)
    energy = F.conv2d(energy_BGHW, ones, None, layer.stride, padding, layer.dilation, layer.groups)
    return energy.clamp_(min=0).sqrt_().flatten(2).unsqueeze(2)


def _groups(layer: Layer) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def per_row(values: Tensor, weight: Tensor) -> Tensor:
    """One value for each unit, in any shape, to be multiplied with the weight."""
    return values.reshape(-1, *[1] * (weight.dim() - 1))


def _per_unit(layer: Layer, values_K: Tensor) -> Tensor:
    return values_K.reshape(-1, 1, 1) if isinstance(layer, nn.Conv2d) else values_K


def _by_group(layer: Layer, output: Tensor) -> Tensor:
    """(B, channels, H, W) or (..., units) -> (B, G, K, L)."""
    if isinstance(layer, nn.Linear):
        return output.reshape(-1, 1, output.shape[-1], 1)
    return output.reshape(len(output), layer.groups, -1, output.shape[2] * output.shape[3])


def _padded(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, list[int]]:
    """The input with any padding that is not plain symmetric zeros written out, and the padding that is left to do."""
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return x, list(layer.padding)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, layer._reversed_padding_repeated_twice, mode), [0, 0]


def _output_size(layer: nn.Conv2d, x: Tensor, padding: list[int]) -> list[int]:
    return [
        (x.shape[2 + i] + 2 * padding[i] - layer.dilation[i] * (layer.kernel_size[i] - 1) - 1) // layer.stride[i] + 1
        for i in range(2)
    ]


def _covers_input(layer: nn.Conv2d, x: Tensor) -> bool:
    """A kernel as large as its whole, unpadded input sees one patch a sample: a linear layer."""
    unpadded = layer.padding == (0, 0) or layer.padding == "valid"
    return unpadded and layer.groups == 1 and layer.dilation == (1, 1) and tuple(x.shape[2:]) == layer.kernel_size
