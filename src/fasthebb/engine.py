"""The update of one layer: numerator and denominator, as sums over patches.

Both are sums for a fixed W, so those of micro-batches or of other processes add up, and one division at the end
gives the update of the whole batch, exactly. For a convolution G^T X is its weight gradient with G in place of the
output's gradient, and nothing is unfolded. (One on small maps, with fewer patches than units, is unfolded where the
blocked form of `products` then wins by more.)

Shapes: N patches (samples x positions), D inputs of a unit, K units, G groups; B batch. Knows no rule by name.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fasthebb import geometry, products, tiles
from fasthebb.geometry import Layer
from fasthebb.responses import PreActivation
from fasthebb.rules import Terms


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

    def add_(self, other: "Sums") -> None:
        """More patches, into the same memory."""
        self.numerator.add_(other.numerator)
        self.denominator.add_(other.denominator)

    @torch.no_grad()
    def gradient_(self, weight: Tensor) -> Tensor:
        """-dW = -numerator / denominator, in the numerator's memory: the sums are spent.

        A unit whose denominator is 0 has learnt nothing and stays as it is.
        """
        numerator = self.numerator
        if self.tangent:
            along_K = (numerator * weight).flatten(1).sum(1)
            numerator.addcmul_(geometry.per_row(along_K, weight), weight, value=-1)
        if self.largest:
            groups = len(self.denominator)
            denominator_GK = numerator.reshape(groups, -1).abs().amax(1, keepdim=True).expand_as(self.denominator)
        else:
            denominator_GK = self.denominator + self.damping * self.denominator.mean(1, keepdim=True)
        return numerator.mul_(geometry.per_row(torch.where(denominator_GK == 0, 0, -1 / denominator_GK), weight))


def chunks(layer: Layer, x: Tensor, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A convolution's batch in parts whose responses stay small; sums over patches don't mind."""
    if len(x) and (isinstance(layer, nn.Linear) or geometry.covers_input(layer, x)):
        yield x, output
        return
    if len(x) == 0:  # a process may have nothing of a batch
        return
    parts = math.ceil(output.numel() / tiles.sizes_for(output).chunk)
    size = math.ceil(len(x) / parts)
    yield from zip(x.split(size), output.split(size), strict=True)


def pre_activation(layer: Layer, x: Tensor, output: Tensor, *, lengths: bool = True) -> PreActivation:
    """The layer's inner products, and lengths where wanted, from its input and its output: x.w costs nothing twice."""
    dot = output if layer.bias is None else output - geometry.per_unit(layer, layer.bias)
    if not lengths:
        return PreActivation(geometry.by_patch(layer, dot))
    weight_norm_GK = layer.weight.flatten(1).norm(dim=1).reshape(geometry.groups_of(layer), -1)
    return PreActivation(geometry.by_patch(layer, dot), weight_norm_GK, geometry.patch_norm(layer, x))


def project_(layer: Layer, output: Tensor) -> Tensor:
    """The output made x.w / |w|, in its own memory; a bias stays as it is, as it will with weights of length 1."""
    norm_K = layer.weight.flatten(1).norm(dim=1)
    scale = geometry.per_unit(layer, 1 / torch.where(norm_K == 0, 1, norm_K)).to(output.dtype)
    if layer.bias is None:
        return output.mul_(scale)
    bias = geometry.per_unit(layer, layer.bias).to(output.dtype)
    return output.sub_(bias).mul_(scale).add_(bias)


def sums(layer: Layer, x: Tensor, terms: Terms, spare: Tensor | None = None) -> Sums:
    """Numerator and denominator of one layer for one batch.

    Args:
        layer: a Linear or Conv2d of any stride, padding, dilation and groups.
        x: what the layer was called with.
        terms: what the rule said of its response.
        spare: memory for the numerator, in the weight's shape.
    """
    if isinstance(layer, nn.Conv2d) and not geometry.covers_input(layer, x) and not _has_few_patches(layer, terms):
        numerator, power_GK = _convolution(layer, x, terms)
    else:
        w_KD = layer.weight.flatten(1)
        out_KD = torch.empty_like(w_KD) if spare is None else spare.flatten(1)
        numerator_KD, power_GK = products.of_patches(geometry.patches(layer, x), w_KD, terms, out_KD)
        numerator = numerator_KD.view_as(layer.weight)
    if terms.power:
        denominator_GK = power_GK
    elif terms.share is not None:
        denominator_GK = terms.share
    else:
        denominator_GK = terms.gate.new_full(terms.gate.shape[1:], len(terms.gate))
    return Sums(numerator, denominator_GK, terms.damping, terms.largest, terms.tangent)


def nothing(layer: Layer, terms: Terms) -> Sums:
    """The sums over no patch, for a rule with such terms."""
    denominator_GK = layer.weight.new_zeros(geometry.groups_of(layer), len(layer.weight) // geometry.groups_of(layer))
    return Sums(torch.zeros_like(layer.weight), denominator_GK, terms.damping, terms.largest, terms.tangent)


def _has_few_patches(layer: nn.Conv2d, terms: Terms) -> bool:
    """Whether a deep convolution on small maps does better in blocks of units, for which its few patches are unfolded.

    All pairs of units cost about N K^2 + K^2 D, blocks of b units 2 N K D + 2 b K D.
    """
    n, k, d = len(terms.gate), len(layer.weight), layer.weight[0].numel()
    in_order = terms.mask == "tril" and terms.recombination is not None and terms.towards == "patches"
    return layer.groups == 1 and in_order and n < k and k * (n + d) > 2 * (n + tiles.sizes_for(terms.gate).block) * d


def _convolution(layer: nn.Conv2d, x: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
    """Numerator and sum_n G R, (G, K). X is never unfolded; the K x K matrix is small beside the positions."""
    gate, recombination = terms.gate, terms.recombination
    if terms.towards != "patches":
        numerator = layer.weight * (len(gate) if terms.towards == "weights" else 0)
    else:
        x, padding = geometry.padded(layer, x)
        height, width = geometry.output_size(layer, x, padding)
        gate_BCHW = gate.reshape(len(x), height, width, layer.out_channels).movedim(-1, 1)
        _, numerator, _ = torch.ops.aten.convolution_backward(
            gate_BCHW, x, layer.weight, None, layer.stride, padding, layer.dilation, False, [0, 0], layer.groups,
            [False, True, False],
        )  # fmt: skip
    # one row a unit, in whatever order of its inputs is a view
    last = numerator.is_contiguous(memory_format=torch.channels_last)
    numerator = numerator if last else numerator.contiguous()
    inputs_last = (0, 2, 3, 1) if last else (0, 1, 2, 3)
    out_GKD = numerator.permute(inputs_last).view(layer.groups, -1, layer.weight[0].numel())
    w_GKD = layer.weight.permute(inputs_last).reshape(out_GKD.shape)
    power_GK = gate.new_empty(gate.shape[1:])
    for group in range(layer.groups):
        r_NK = None if recombination is None else recombination[:, group]
        power_GK[group] = products.recombine_(out_GKD[group], w_GKD[group], gate[:, group], r_NK, terms.mask)
    return numerator, power_GK
