"""The products behind every rule: G^T X - mask(G^T R) W and sum_n G R, for plain matrices.

tril(G^T R) W is causal linear attention over units. With few patches it is computed in blocks of units: each block
works on the rest of X, from which the reconstruction by all earlier blocks is already subtracted. That costs O(N K D)
instead of O(K^2 D) for all pairs of units. Both forms are exact.

Shapes: N patches, D inputs of a unit, K units; P blocks of b units; T tiles of d inputs; S parts of n patches.
Knows no layer.
"""

import torch
from torch import Tensor

from fasthebb import tiles
from fasthebb.rules import Terms


def of_patches(x_ND: Tensor, w_KD: Tensor, terms: Terms, out_KD: Tensor) -> tuple[Tensor, Tensor]:
    """The numerator, which it writes into out_KD, and sum_n G R of each unit, (1, K)."""
    n, k, d = len(x_ND), *w_KD.shape
    g_NK = terms.gate.reshape(n, k)
    r_NK = None if terms.recombination is None else terms.recombination.reshape(n, k)
    if terms.towards != "patches":
        torch.mul(w_KD, n if terms.towards == "weights" else 0, out=out_KD)
    elif terms.mask == "tril" and r_NK is not None and k * (n + d) > n * d:
        return out_KD, _blocked(x_ND, w_KD, g_NK, r_NK, out_KD)  # all pairs: N K^2 + K^2 D
    else:
        torch.mm(g_NK.T, x_ND, out=out_KD)
    if terms.mask == "full" and r_NK is not None:
        out_KD.addmm_(g_NK.T, r_NK @ w_KD, alpha=-1)
        return out_KD, _total(g_NK, r_NK).unsqueeze(0)
    total_K = None if terms.total is None else terms.total[0]
    return out_KD, recombine_(out_KD, w_KD, g_NK, r_NK, terms, total_K).unsqueeze(0)


def _blocked(x_ND: Tensor, w_KD: Tensor, g_NK: Tensor, r_NK: Tensor, out_KD: Tensor) -> Tensor:
    """Writes G^T X - tril(G^T R) W into out_KD, block by block; returns sum_n G R, (1, K).

    The units that fill no whole block are one smaller block at the end.
    """
    block, tile = tiles.sizes_for(x_ND).block, tiles.sizes_for(x_ND).tile
    whole = len(w_KD) // block * block
    rest_ND, powers = x_ND, []
    for units, size in ((slice(0, whole), block), (slice(whole, None), len(w_KD) - whole)):
        if len(w_KD[units]) == 0:
            continue
        g_PbN = g_NK.T[units].reshape(-1, size, len(x_ND))
        r_PNb = r_NK.T[units].reshape(-1, size, len(x_ND)).transpose(1, 2)
        interaction_Pbb = torch.bmm(g_PbN, r_PNb)
        powers.append(interaction_Pbb.diagonal(dim1=1, dim2=2).flatten())
        own_Pbb = interaction_Pbb.tril().neg_()
        blocks = (rest_ND, w_KD[units], g_PbN, r_PNb, own_Pbb, out_KD[units])
        at_once = tile is None and (len(g_PbN) + 1) * x_ND.numel() <= tiles.sizes_for(x_ND).chunk
        rest_ND = _at_once(*blocks) if at_once else _in_turn(*blocks, tile or x_ND.shape[1])
    return torch.cat(powers).unsqueeze(0)


def _at_once(rest_ND: Tensor, w_KD: Tensor, g_PbN: Tensor, r_PNb: Tensor, own_Pbb: Tensor, out_KD: Tensor) -> Tensor:
    """All blocks in one batch of products; returns the rest of X after all blocks, (N, D)."""
    blocks, size, inputs = len(g_PbN), g_PbN.shape[1], w_KD.shape[1]
    w_PbD, out_PbD = w_KD.view(blocks, size, inputs), out_KD.view(blocks, size, inputs)
    left_QND = rest_ND.new_empty(blocks + 1, *rest_ND.shape)  # Q = P + 1: after no block, after one, ...
    left_QND[0] = rest_ND
    torch.baddbmm(left_QND[1:], r_PNb, w_PbD, beta=0, alpha=-1, out=left_QND[1:])
    left_QND.cumsum_(0)
    torch.bmm(g_PbN, left_QND[:-1], out=out_PbD)
    out_PbD.baddbmm_(own_Pbb, w_PbD)
    return left_QND[-1]


def _in_turn(
    rest_ND: Tensor, w_KD: Tensor, g_PbN: Tensor, r_PNb: Tensor, own_Pbb: Tensor, out_KD: Tensor, tile: int
) -> Tensor:
    """One block after the other; returns the rest of X after all blocks, (N, D).

    The inputs are divided into T tiles, which makes each product a batch of T small ones: libraries divide a batch
    between threads, but may leave a single product of few rows to one thread.
    """
    size, inputs = g_PbN.shape[1], w_KD.shape[1]
    tiles = _divisor(inputs, max(1, inputs // tile))
    (rest_TNd,) = _tiled_blocks(rest_ND, len(rest_ND), tiles)
    rest_TNd = rest_TNd.clone(memory_format=torch.contiguous_format)
    out_Tbd = rest_TNd.new_empty(tiles, size, inputs // tiles)
    # all views are made here: one made in the loop costs a tenth of a product
    every_tile = [block_P.unsqueeze(1).expand(-1, tiles, -1, -1).unbind() for block_P in (g_PbN, own_Pbb, r_PNb)]
    weights_PTbd, outs_PTbd = _tiled_blocks(w_KD, size, tiles), _tiled_blocks(out_KD, size, tiles)
    for g_TbN, own_Tbb, r_TNb, w_Tbd, block_Tbd in zip(*every_tile, weights_PTbd, outs_PTbd, strict=True):
        torch.bmm(g_TbN, rest_TNd, out=out_Tbd)
        block_Tbd.copy_(out_Tbd.baddbmm_(own_Tbb, w_Tbd))
        rest_TNd.baddbmm_(r_TNb, w_Tbd, alpha=-1)
    return rest_TNd.movedim(0, 1).reshape(rest_ND.shape)


def _tiled_blocks(rows_KD: Tensor, size: int, tiles: int) -> tuple[Tensor, ...]:
    """Views of the blocks of `size` rows, each (T, size, D / T)."""
    return rows_KD.view(-1, size, tiles, rows_KD.shape[1] // tiles).movedim(2, 1).unbind()


def recombine_(
    out_KD: Tensor, w_KD: Tensor, g_NK: Tensor, r_NK: Tensor | None, terms: Terms, total_K: Tensor | None
) -> Tensor:
    """Subtracts mask(G^T R) W from out_KD, in place; returns sum_n G R of each unit, (K,), or 0 if nobody needs it.

    It computes all pairs of units, so it is for few units, or for a mask without pairs.

    Args:
        g_NK, r_NK, total_K: the gate, the recombination and their sum sum_n G R, if the terms have one, of one group.
    """
    mask = terms.mask
    if mask == "none" and not terms.power:
        return w_KD.new_zeros(len(w_KD))
    if r_NK is None or mask in ("diag", "none"):
        power_K = _total(g_NK, r_NK) if total_K is None else total_K
        if mask != "none":
            out_KD.addcmul_(power_K.unsqueeze(1), w_KD, value=-1)
        return power_K
    k, pairs = len(w_KD), tiles.sizes_for(w_KD).pairs
    power_K = g_NK.new_empty(k)
    parts = _divisor(len(g_NK), tiles.sizes_for(w_KD).parts)
    g_SKn, r_SnK = g_NK.unflatten(0, (parts, -1)).transpose(1, 2), r_NK.unflatten(0, (parts, -1))
    for start in range(0, k, pairs):  # skips most of the pairs above the diagonal
        units = slice(start, start + pairs)
        others = slice(0, start + pairs if mask == "tril" else k)
        interaction = torch.bmm(g_SKn[:, units], r_SnK[..., others]).sum(0)
        power_K[units] = interaction.diagonal(start)
        if mask == "tril":
            interaction.tril_(start)
        out_KD[units].addmm_(interaction, w_KD[others], alpha=-1)
    return power_K


def _total(g_NK: Tensor, r_NK: Tensor | None) -> Tensor:
    """sum_n G R, (K,)."""
    return (g_NK if r_NK is None else g_NK * r_NK).sum(0)


def _divisor(count: int, most: int) -> int:
    """The largest divisor of `count` that is at most `most`."""
    return next(divisor for divisor in range(most, 0, -1) if count % divisor == 0)
