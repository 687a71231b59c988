"""The update of one layer: a numerator and a denominator, both sums over patches (see rules.py for the equations).

While W stays the same, the sums of micro-batches and of processes add up. One division at the end gives the update of
the whole batch.
For a convolution, G^T X is its weight gradient with G in place of the output's gradient, so patches are not unfolded.
The exception is a convolution with fewer patches than units: it unfolds them, where products.py then costs less by
going through the units block by block.

Shapes: N patches (samples x positions), D inputs of a unit, K units, B batch; G in a shape is the number of groups.
Knows no rule by name.
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
    """The numerator and denominator of an update, sums over patches.

    Args:
        numerator: in the shape of the weight.
        denominator: (G, K).
        damping, largest, tangent: see `Terms`; they say how to divide after all patches are added.
    """

    numerator: Tensor
    denominator: Tensor
    damping: float = 0.0
    largest: bool = False
    tangent: bool = False

    def add_(self, other: "Sums") -> None:
        """Adds sums over more patches, in place."""
        self.numerator.add_(other.numerator)
        self.denominator.add_(other.denominator)

    @torch.no_grad()
    def gradient_(self, weight: Tensor) -> Tensor:
        """-dW = -numerator / denominator, in the shape of the weight.

        It overwrites the numerator. A unit whose denominator is 0 gets a gradient of 0.
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
    """Divides a batch into chunks whose responses fit the cache; sums over patches allow that.

    Only a convolution's batch is divided. It yields pairs of input and output; none for an empty batch.
    """
    if len(x) and (isinstance(layer, nn.Linear) or geometry.covers_input(layer, x)):
        yield x, output
        return
    if len(x) == 0:  # a process may have no image of a batch
        return
    parts = math.ceil(output.numel() / tiles.sizes_for(output).chunk)
    size = math.ceil(len(x) / parts)
    yield from zip(x.split(size), output.split(size), strict=True)


def pre_activation(
    layer: Layer, x: Tensor, output: Tensor, *, projected: bool = False, lengths: bool = True, squares: bool = True
) -> PreActivation:
    """The layer's inner products x.w, from its output, so that they are not computed twice.

    Args:
        x, output: the layer's input and output.
        projected: the output is that of `project_`, x.w / |w| + b.
        lengths: also compute |x|, and |w| unless `projected`, for the responses in WITH_LENGTHS.
        squares: also compute |w|^2, for the responses in WITH_SQUARES.
    """
    dot = output if layer.bias is None else output - geometry.per_unit(layer, layer.bias)
    dot_NGK, rows_KD, groups = geometry.by_patch(layer, dot), layer.weight.flatten(1), geometry.groups_of(layer)
    return PreActivation(
        dot_NGK,
        weight_norm_GK=rows_KD.norm(dim=1).reshape(groups, -1) if lengths and not projected else None,
        patch_norm_NG1=geometry.patch_norm(layer, x) if lengths else None,
        weight_square_GK=rows_KD.square().sum(1).reshape(groups, -1) if squares else None,
    )


def project_(layer: Layer, output: Tensor) -> Tensor:
    """Turns the layer's output into x.w / |w| + b, in place; for weights of length 0 it is b."""
    norm_K = layer.weight.flatten(1).norm(dim=1)
    scale = geometry.per_unit(layer, 1 / torch.where(norm_K == 0, 1, norm_K)).to(output.dtype)
    if layer.bias is None:
        return output.mul_(scale)
    bias = geometry.per_unit(layer, layer.bias).to(output.dtype)
    return output.sub_(bias).mul_(scale).add_(bias)


def sums(layer: Layer, x: Tensor, terms: Terms, spare: Tensor | None = None) -> Sums:
    """The numerator and denominator of one layer for one batch.

    Args:
        layer: a Linear or Conv2d of any stride, padding, dilation and groups.
        x: the layer's input.
        terms: the rule's terms for the layer's response to x.
        spare: memory for the numerator, in the shape of the weight; None: it is allocated.
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
    """The sums of an empty batch, for a rule with these terms."""
    denominator_GK = layer.weight.new_zeros(geometry.groups_of(layer), len(layer.weight) // geometry.groups_of(layer))
    return Sums(torch.zeros_like(layer.weight), denominator_GK, terms.damping, terms.largest, terms.tangent)


def _has_few_patches(layer: nn.Conv2d, terms: Terms) -> bool:
    """Whether a convolution has so few patches that unfolding them, for the blocked form, costs less.

    All pairs of units cost about N K^2 + K^2 D operations; blocks of b units cost about 2 N K D + 2 b K D.
    """
    n, k, d = len(terms.gate), len(layer.weight), layer.weight[0].numel()
    in_order = terms.mask == "tril" and terms.recombination is not None and terms.towards == "patches"
    return layer.groups == 1 and in_order and n < k and k * (n + d) > 2 * (n + tiles.sizes_for(terms.gate).block) * d


def _convolution(layer: nn.Conv2d, x: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
    """The numerator and sum_n G R, (G, K), without unfolding X. The K x K matrix is small beside the output maps."""
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
    # one row for each unit; its inputs are in the order that needs no copy
    last = numerator.is_contiguous(memory_format=torch.channels_last)
    numerator = numerator if last else numerator.contiguous()
    inputs_last = (0, 2, 3, 1) if last else (0, 1, 2, 3)
    out_GKD = numerator.permute(inputs_last).view(layer.groups, -1, layer.weight[0].numel())
    w_GKD = layer.weight.permute(inputs_last).reshape(out_GKD.shape)
    power_GK = gate.new_empty(gate.shape[1:])
    for group in range(layer.groups):
        g_NK, r_NK = gate[:, group], None if recombination is None else recombination[:, group]
        total_K = None if terms.total is None else terms.total[group]
        power_GK[group] = products.recombine_(out_GKD[group], w_GKD[group], g_NK, r_NK, terms, total_K)
    return numerator, power_GK
