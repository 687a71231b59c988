"""The matrix products behind every rule: numerator and denominator of one layer, as sums over patches.

Both are sums for a fixed W, so those of micro-batches or of other processes add up, and one division at the end
gives the update of the whole batch, exactly. Two exact speed-ups (nothing is approximated):

1. No unfolding. For a convolution G^T X is its weight gradient with G in place of the output's gradient. (One on small
   maps, with fewer patches than units, is unfolded where the second speed-up then wins by more.)
2. tril(G^T R) W is causal linear attention over units. With fewer patches than it takes to fill the K x K matrix,
   units are done in blocks, each on what the blocks before left of X: O(N K D) instead of O(K^2 D).

Shapes: N patches (samples x positions), D inputs of a unit, K units, G groups; B batch. Knows no rule by name.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from fasthebb_cli.hebb.responses import PreActivation
from fasthebb_cli.hebb.rules import Mask, Terms

BLOCK = 32  # units a block in the blocked form
TILE = 256  # inputs a tile in the blocked form, at least
PAIRS = 48  # units at a time of the matrix of all pairs
PARTS = 8  # of the patches, at most, whose products go to the library as a batch: it shares that out better
CHUNK = 5 << 18  # numbers a tensor of a convolution's responses has at most: small enough for a processor's cache

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

    def add_(self, other: "Sums") -> None:
        """More patches, into the same memory."""
        self.numerator.add_(other.numerator)
        self.denominator.add_(other.denominator)

    def send(self, processes: dist.ProcessGroup) -> Callable[[], "Sums"]:
        """Starts to add up everyone's sums, in one flat buffer; what it returns waits for the result."""
        flat = torch.cat([_inputs_last(self.numerator).reshape(-1), self.denominator.reshape(-1)])
        work = dist.all_reduce(flat, group=processes, async_op=True)
        assert work is not None

        def received() -> Sums:
            work.wait()
            numerator, denominator = flat.split([self.numerator.numel(), self.denominator.numel()])
            ordered = _inputs_last(self.numerator)
            ordered.copy_(numerator.view_as(ordered))
            self.denominator = denominator.view_as(self.denominator)
            return self

        return received

    @torch.no_grad()
    def gradient_(self, weight: Tensor) -> Tensor:
        """-dW = -numerator / denominator, in the numerator's memory: the sums are spent.

        A unit whose denominator is 0 has learnt nothing and stays as it is.
        """
        numerator = self.numerator
        if self.tangent:
            along_K = (numerator * weight).flatten(1).sum(1)
            numerator.addcmul_(per_row(along_K, weight), weight, value=-1)
        if self.largest:
            groups = len(self.denominator)
            denominator_GK = numerator.reshape(groups, -1).abs().amax(1, keepdim=True).expand_as(self.denominator)
        else:
            denominator_GK = self.denominator + self.damping * self.denominator.mean(1, keepdim=True)
        return numerator.mul_(per_row(torch.where(denominator_GK == 0, 0, -1 / denominator_GK), weight))


def chunks(layer: Layer, x: Tensor, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A convolution's batch in parts whose responses stay in the cache; sums over patches don't mind."""
    if len(x) and (isinstance(layer, nn.Linear) or _covers_input(layer, x)):
        yield x, output
        return
    if len(x) == 0:  # a process may have nothing of a batch
        return
    parts = math.ceil(output.numel() / CHUNK)
    size = math.ceil(len(x) / parts)
    yield from zip(x.split(size), output.split(size), strict=True)


def pre_activation(layer: Layer, x: Tensor, output: Tensor, *, lengths: bool = True) -> PreActivation:
    """The layer's inner products, and lengths where wanted, from its input and its output: x.w costs nothing twice."""
    dot = output if layer.bias is None else output - _per_unit(layer, layer.bias)
    if not lengths:
        return PreActivation(_by_patch(layer, dot))
    weight_norm_GK = layer.weight.flatten(1).norm(dim=1).reshape(groups_of(layer), -1)
    return PreActivation(_by_patch(layer, dot), weight_norm_GK, _patch_norm(layer, x))


def project_(layer: Layer, output: Tensor) -> Tensor:
    """The output made x.w / |w|, in its own memory; a bias stays as it is, as it will with weights of length 1."""
    norm_K = layer.weight.flatten(1).norm(dim=1)
    scale = _per_unit(layer, 1 / torch.where(norm_K == 0, 1, norm_K)).to(output.dtype)
    if layer.bias is None:
        return output.mul_(scale)
    bias = _per_unit(layer, layer.bias).to(output.dtype)
    return output.sub_(bias).mul_(scale).add_(bias)


def sums(layer: Layer, x: Tensor, terms: Terms, spare: Tensor | None = None) -> Sums:
    """Numerator and denominator of one layer for one batch.

    Args:
        layer: a Linear or Conv2d of any stride, padding, dilation and groups.
        x: what the layer was called with.
        terms: what the rule said of its response.
        spare: memory for the numerator, in the weight's shape.
    """
    if isinstance(layer, nn.Conv2d) and not _covers_input(layer, x) and not _has_few_patches(layer, terms):
        numerator, power_GK = _convolution(layer, x, terms)
    else:
        w_KD = layer.weight.flatten(1)
        out_KD = torch.empty_like(w_KD) if spare is None else spare.flatten(1)
        numerator_KD, power_GK = _linear(_patches(layer, x), w_KD, terms, out_KD)
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
    denominator_GK = layer.weight.new_zeros(groups_of(layer), len(layer.weight) // groups_of(layer))
    return Sums(torch.zeros_like(layer.weight), denominator_GK, terms.damping, terms.largest, terms.tangent)


def _has_few_patches(layer: nn.Conv2d, terms: Terms) -> bool:
    """Whether a deep convolution on small maps does better in blocks of units, for which its few patches are unfolded.

    All pairs of units cost about N K^2 + K^2 D, blocks 2 N K D + 2 BLOCK K D.
    """
    n, k, d = len(terms.gate), len(layer.weight), layer.weight[0].numel()
    in_order = terms.mask == "tril" and terms.recombination is not None and terms.towards == "patches"
    return layer.groups == 1 and in_order and n < k and k * (n + d) > 2 * (n + BLOCK) * d


def _patches(layer: Layer, x: Tensor) -> Tensor:
    """What the units see, (N, D)."""
    if isinstance(layer, nn.Linear) or _covers_input(layer, x):
        return x.reshape(-1, layer.weight[0].numel())
    x, padding = _padded(layer, x)
    columns_BDP = F.unfold(x, layer.kernel_size, layer.dilation, tuple(padding), layer.stride)
    return columns_BDP.transpose(1, 2).reshape(-1, columns_BDP.shape[1])


def _linear(x_ND: Tensor, w_KD: Tensor, terms: Terms, out_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Numerator, in out_KD, and sum_n G R of each unit, (1, K)."""
    n, k, d = len(x_ND), *w_KD.shape
    g_NK = terms.gate.reshape(n, k)
    r_NK = None if terms.recombination is None else terms.recombination.reshape(n, k)
    if terms.towards != "patches":
        torch.mul(w_KD, n if terms.towards == "weights" else 0, out=out_KD)
    elif terms.mask == "tril" and r_NK is not None and k * (n + d) > n * d:
        return out_KD, _blocked(x_ND, w_KD, g_NK, r_NK, out_KD)  # K x K costs N K^2 + K^2 D, blocks about N K D
    else:
        torch.mm(g_NK.T, x_ND, out=out_KD)
    if terms.mask == "full" and r_NK is not None:
        out_KD.addmm_(g_NK.T, r_NK @ w_KD, alpha=-1)
        return out_KD, (g_NK * r_NK).sum(0).unsqueeze(0)
    return out_KD, _recombine_(out_KD, w_KD, g_NK, r_NK, terms.mask).unsqueeze(0)


def _blocked(x_ND: Tensor, w_KD: Tensor, g_NK: Tensor, r_NK: Tensor, out_KD: Tensor) -> Tensor:
    """G^T X - tril(G^T R) W in blocks of units, each on what the blocks before it leave of the patches.

    Inputs are in T tiles, a batch of small products at a time: a library shares out products between threads where it
    may leave a single one of few rows to one thread.
    """
    whole = len(w_KD) // BLOCK * BLOCK
    inputs = x_ND.shape[1]
    tiles = _divisor(inputs, max(1, inputs // TILE))
    (rest_TNd,) = _tiled_blocks(x_ND, len(x_ND), tiles)
    rest_TNd = rest_TNd.clone(memory_format=torch.contiguous_format)
    powers = []
    for units, size in ((slice(0, whole), BLOCK), (slice(whole, None), len(w_KD) - whole)):
        if len(w_KD[units]) == 0:
            continue
        g_PbN = g_NK.T[units].reshape(-1, size, len(x_ND))
        r_PNb = r_NK.T[units].reshape(-1, size, len(x_ND)).transpose(1, 2)
        interaction_Pbb = torch.bmm(g_PbN, r_PNb)
        powers.append(interaction_Pbb.diagonal(dim1=1, dim2=2).flatten())
        own_Pbb = interaction_Pbb.tril().neg_()
        out_Tbd = rest_TNd.new_empty(tiles, size, inputs // tiles)
        # unbound at once: a view made in the loop costs as much as a tenth of a product
        every_tile = [block_P.unsqueeze(1).expand(-1, tiles, -1, -1).unbind() for block_P in (g_PbN, own_Pbb, r_PNb)]
        weights_PTbd, outs_PTbd = _tiled_blocks(w_KD[units], size, tiles), _tiled_blocks(out_KD[units], size, tiles)
        for g_TbN, own_Tbb, r_TNb, w_Tbd, block_Tbd in zip(*every_tile, weights_PTbd, outs_PTbd, strict=True):
            torch.bmm(g_TbN, rest_TNd, out=out_Tbd)
            block_Tbd.copy_(out_Tbd.baddbmm_(own_Tbb, w_Tbd))
            rest_TNd.baddbmm_(r_TNb, w_Tbd, alpha=-1)
    return torch.cat(powers).unsqueeze(0)


def _tiled_blocks(rows_KD: Tensor, size: int, tiles: int) -> tuple[Tensor, ...]:
    """Views (T, size, D / T) of the blocks of so many rows."""
    return rows_KD.view(-1, size, tiles, rows_KD.shape[1] // tiles).movedim(2, 1).unbind()


def _recombine_(out_KD: Tensor, w_KD: Tensor, g_NK: Tensor, r_NK: Tensor | None, mask: Mask) -> Tensor:
    """Takes mask(G^T R) W from `out`; returns sum_n G R of each unit, (K,). For few units, or a mask without pairs."""
    if r_NK is None or mask in ("diag", "none"):
        power_K = (g_NK if r_NK is None else g_NK * r_NK).sum(0)
        if mask != "none":
            out_KD.addcmul_(power_K.unsqueeze(1), w_KD, value=-1)
        return power_K
    k = len(w_KD)
    power_K = g_NK.new_empty(k)
    parts = _divisor(len(g_NK), PARTS)
    g_PKn, r_PnK = g_NK.unflatten(0, (parts, -1)).transpose(1, 2), r_NK.unflatten(0, (parts, -1))
    for start in range(0, k, PAIRS):  # without most of what lies above the diagonal
        units = slice(start, start + PAIRS)
        others = slice(0, start + PAIRS if mask == "tril" else k)
        interaction = torch.bmm(g_PKn[:, units], r_PnK[..., others]).sum(0)
        power_K[units] = interaction.diagonal(start)
        if mask == "tril":
            interaction.tril_(start)
        out_KD[units].addmm_(interaction, w_KD[others], alpha=-1)
    return power_K


def _convolution(layer: nn.Conv2d, x: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
    """Numerator and sum_n G R, (G, K). X is never unfolded; the K x K matrix is small beside the positions."""
    gate, recombination = terms.gate, terms.recombination
    if terms.towards != "patches":
        numerator = layer.weight * (len(gate) if terms.towards == "weights" else 0)
    else:
        x, padding = _padded(layer, x)
        height, width = _output_size(layer, x, padding)
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
        power_GK[group] = _recombine_(out_GKD[group], w_GKD[group], gate[:, group], r_NK, terms.mask)
    return numerator, power_GK


def _divisor(count: int, most: int) -> int:
    """The largest divisor of count up to most."""
    return next(divisor for divisor in range(most, 0, -1) if count % divisor == 0)


def _inputs_last(weight: Tensor) -> Tensor:
    """A view in which channels_last memory is contiguous; the same order in every process, whatever its memory."""
    return weight.movedim(1, -1) if weight.dim() == 4 else weight


def _patch_norm(layer: Layer, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        norm_N: Tensor = x.reshape(-1, x.shape[-1]).norm(dim=1)
        return norm_N.reshape(-1, 1, 1)
    x, padding = _padded(layer, x)
    energy_BGHW = x.square().unflatten(1, (layer.groups, -1)).sum(2)
    ones = energy_BGHW.new_ones(1, 1, *layer.kernel_size)
    flat = energy_BGHW.reshape(-1, 1, *x.shape[2:])
    energy = F.conv2d(flat, ones, None, layer.stride, padding, layer.dilation)
    energy = energy.reshape(len(x), layer.groups, energy.shape[-2] * energy.shape[-1]).clamp_(min=0).sqrt_()
    return energy.transpose(1, 2).reshape(-1, layer.groups, 1)


def groups_of(layer: Layer) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def per_row(values: Tensor, weight: Tensor) -> Tensor:
    """One value for each unit, in any shape, to be multiplied with the weight."""
    return values.reshape(-1, *[1] * (weight.dim() - 1))


def _per_unit(layer: Layer, values_K: Tensor) -> Tensor:
    return values_K.reshape(-1, 1, 1) if isinstance(layer, nn.Conv2d) else values_K


def _by_patch(layer: Layer, output: Tensor) -> Tensor:
    """(B, channels, H, W) or (..., units) -> (N, G, K); a view of an output in channels_last."""
    if isinstance(layer, nn.Linear):
        return output.reshape(-1, 1, output.shape[-1])
    return output.movedim(1, -1).reshape(-1, layer.groups, output.shape[1] // layer.groups)


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
