"""Response and gate of a competitive rule in one kernel: it reads the dots once and writes the gate once.

The eager form, `gradients.terms_of`, makes five to ten passes over memory for that; it is the kernel's oracle. The
kernel (kernels.py) is for a GPU. On a CPU it runs in Triton's interpreter (TRITON_INTERPRET=1), as in the tests.
A step with it has not been timed on a GPU yet.
"""

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from fasthebb import rules
from fasthebb.responses import PreActivation, Response, dot, nearness, raised_cosine
from fasthebb.rules import Rule, Terms

RESPONSES: dict[Response, str] = {dot: "dot", raised_cosine: "raised_cosine", nearness: "nearness"}
# the gate: squared shares of a softmax of scores or of their logarithms, signed shares, or 1 for each winner
GATES: dict[Rule, str] = {
    rules.swta: "shares", rules.pswta: "powers", rules.softhebb: "signed",
    rules.kwta: "winners", rules.hwta: "winners", rules.kmeans: "winners",
}  # fmt: skip
MOST_UNITS, MOST_WINNERS = 1 << 14, 8  # a program holds a patch's units, and finds its winners one by one


def fuses(response: Response, rule: Rule, options: Mapping[str, Any], pre: PreActivation) -> bool:
    """Whether the kernel computes the rule's terms for this response: in float32, where Triton runs."""
    return (
        response in RESPONSES
        and rule in GATES
        and (rule is not rules.softhebb or response is dot)  # its sum of G R is that of the dots
        and pre.weight_norm_GK is None
        and pre.dot_NGK.dtype == torch.float32
        and 0 < pre.dot_NGK.shape[2] <= MOST_UNITS
        and _winners(rule, options) <= MOST_WINNERS
        and _has_triton(pre.dot_NGK.device.type)
    )


def fused_terms(response: Response, rule: Rule, options: Mapping[str, Any], pre: PreActivation) -> Terms:
    """The terms of `rule(response(pre), **options)`, for what `fuses` accepts."""
    from fasthebb.kernels import gates

    chosen = _chosen(rule, options)
    sharpness = 1 / chosen.get("temperature", chosen.get("power", 1))
    beside = pre.patch_norm_NG1 if response is raised_cosine else pre.weight_square_GK
    gate_NGK, share_GK, total_GK = gates(
        pre.dot_NGK, beside, RESPONSES[response], GATES[rule], sharpness, _winners(rule, options)
    )
    if rule is rules.softhebb:
        return Terms(gate_NGK, recombination=pre.dot_NGK, total=total_GK, largest=True, competitive=True)
    return Terms(gate_NGK, share=share_GK, total=total_GK, competitive=True)


def _chosen(rule: Rule, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of the rule, with its defaults."""
    return {**(rule.__kwdefaults__ or {}), **options}


def _winners(rule: Rule, options: Mapping[str, Any]) -> int:
    return int(_chosen(rule, options).get("k", 1))


@cache
def _has_triton(device: str) -> bool:
    if find_spec("triton") is None:
        return False
    if device == "cuda":
        return True
    from triton import knobs

    return bool(knobs.runtime.interpret)
