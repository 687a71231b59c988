"""The Triton kernel of fused.py. Importing it needs Triton.

Shapes as in responses.py; S programs, each with a part of the patches; K units are padded to a power of two.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fasthebb.rules import OUT

AT_ONCE = 4096  # numbers that a program works on at a time
PROGRAMS = 1024  # about so many, several for each multiprocessor: each writes its own sums over patches


# an operation of torch's own, so that what counts operations sees it; custom_op would import torch.compile's tracer
LIBRARY = torch.library.Library("fasthebb", "DEF")
LIBRARY.define(
    "gates(Tensor dots, Tensor? beside, str response, str kind, float sharpness, int winners)"
    " -> (Tensor, Tensor, Tensor)"
)


def gates(
    dot_NGK: Tensor, beside: Tensor | None, response: str, kind: str, sharpness: float, winners: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gates of a competitive rule, the sum of its shares over patches, and the sum of G R over patches.

    Args:
        dot_NGK: inner products, float32.
        beside: |x| of each patch, (N, G, 1), for "raised_cosine"; |w|^2, (G, K), for "nearness"; None for "dot".
        kind: a value of `fused.GATES`.
        sharpness: 1 / temperature, or 1 / power.
        winners: number of winners for each patch, >= 1, for "winners".

    Returns:
        gate (N, G, K), share (G, K), total (G, K).
    """
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.fasthebb.gates(dot_NGK, beside, response, kind, sharpness, winners)
    return found


@torch.library.impl(LIBRARY, "gates", "CompositeExplicitAutograd")
def _launched(
    dot_NGK: Tensor, beside: Tensor | None, response: str, kind: str, sharpness: float, winners: int
) -> tuple[Tensor, Tensor, Tensor]:
    dot_NGK = dot_NGK.contiguous()
    patches, groups, units = dot_NGK.shape
    padded = triton.next_power_of_2(units)
    rows = max(1, AT_ONCE // padded)
    part = rows * max(1, triton.cdiv(patches, rows * PROGRAMS))
    programs = triton.cdiv(patches, part)
    gate_NGK = torch.empty_like(dot_NGK)
    sums_2SGK = dot_NGK.new_empty(2, programs, groups, units)
    beside = dot_NGK if beside is None else beside.contiguous()  # then it is not read
    if programs:
        _gates[(programs, groups)](
            dot_NGK, beside, gate_NGK, *sums_2SGK, patches, units, groups, part, sharpness, OUT,
            RESPONSE=response, KIND=kind, WINNERS=min(winners, units), ROWS=rows, UNITS=padded,
            num_warps=4 if padded <= AT_ONCE else 16,
        )  # fmt: skip
    share_GK, total_GK = sums_2SGK.sum(1)
    return gate_NGK, share_GK.clone(), total_GK.clone()


@triton.jit
def _gates(
    dot, beside, gate, shares, totals, patches, units, groups, part, sharpness, out,
    RESPONSE: tl.constexpr, KIND: tl.constexpr, WINNERS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """One program: the patches `part * program` and following, in one group, ROWS of them at a time."""
    program, group = tl.program_id(0), tl.program_id(1)
    unit = tl.arange(0, UNITS)
    is_unit = unit < units
    share = tl.zeros((UNITS,), tl.float32)
    total = tl.zeros((UNITS,), tl.float32)
    for first in range(program * part, tl.minimum(patches, (program + 1) * part), ROWS):
        patch = first + tl.arange(0, ROWS)
        row = patch.to(tl.int64) * groups + group
        inside = (patch < patches)[:, None] & is_unit[None, :]
        at = row[:, None] * units + unit[None, :]
        d = tl.load(dot + at, mask=inside, other=0.0)
        if RESPONSE == "raised_cosine":
            length = tl.load(beside + row, mask=patch < patches, other=0.0)
            y = d * (tl.where(length > 0, 0.5, 0.0) / tl.where(length > 0, length, 1.0))[:, None] + 0.5
            y = y * y
        elif RESPONSE == "nearness":
            y = d - tl.load(beside + group * units + unit, mask=is_unit, other=0.0)[None, :] / 2
        else:
            y = d
        y = tl.where(is_unit[None, :], y, float("-inf"))
        if KIND == "winners":
            rest, least, found = y, tl.full((ROWS,), float("inf"), tl.float32), tl.zeros((ROWS,), tl.int32)
            for _ in tl.static_range(WINNERS):  # all that tie with the k-th best win
                best = tl.max(rest, 1)
                least = tl.where(found < WINNERS, best, least)
                found += tl.sum((rest == best[:, None]).to(tl.int32), 1)
                rest = tl.where(rest == best[:, None], float("-inf"), rest)
            g = tl.where((y >= least[:, None]) & (y > out) & inside, 1.0, 0.0)
            share += tl.sum(g, 0)
            total += tl.sum(g, 0)
        else:
            if KIND == "powers":
                z = tl.where(y > 0, tl.log(tl.where(y > 0, y, 1.0)), float("-inf")) * sharpness
            else:
                z = y * sharpness
            best = tl.max(z, 1)
            e = tl.exp(z - tl.where(best == float("-inf"), 0.0, best)[:, None])
            norm = tl.sum(e, 1)  # 0 where all scores of powers are 0: then nobody has a share
            r = tl.where(inside, e / tl.where(norm == 0, 1.0, norm)[:, None], 0.0)
            if KIND == "signed":
                g = tl.where(y == tl.max(y, 1)[:, None], r, -r)
                total += tl.sum(g * d, 0)
            else:
                g = r * r
                share += tl.sum(r, 0)
                total += tl.sum(g, 0)
        tl.store(gate + at, g, mask=inside)
    at = (program * groups + group) * units + unit
    tl.store(shares + at, share, mask=is_unit)
    tl.store(totals + at, total, mask=is_unit)
