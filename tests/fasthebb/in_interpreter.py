"""The kernel of the competitive rules, in Triton's interpreter, against the eager form, which is its oracle.

test_fused.py runs this file in a process of its own: Triton decides when it is imported whether it interprets.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from fasthebb import fused, gradients, rules
from fasthebb.learner import HebbianLearner
from fasthebb.responses import RESPONSES, PreActivation, Response, dot, raised_cosine
from fasthebb.rules import Rule, Terms
from fasthebb.settings import RULES
from fasthebb.teacher import Teacher
from fasthebb_cli.bench.traffic import traffic
from tests.fasthebb.test_many import network

COMPETITIVE = ["swta", "pswta", "hwta", "kwta", "kmeans", "softhebb"]


def pre_activation(patches: int, groups: int, units: int) -> PreActivation:
    """With ties in the first patch, no score in the second, a patch of length 0, and scores far apart in the last."""
    torch.manual_seed(0)
    dot_NGK = torch.randn(patches, groups, units)
    dot_NGK[0] = dot_NGK[0].round()
    dot_NGK[1] = -1
    dot_NGK[-1] *= 100
    norm_NG1 = 3 * torch.rand(patches, groups, 1) + 0.1
    norm_NG1[2] = 0
    return PreActivation(dot_NGK, None, norm_NG1, torch.rand(groups, units))


def total(terms: Terms) -> Tensor:
    """sum_n G R, as products.py computes it where a rule does not."""
    return (terms.gate if terms.recombination is None else terms.gate * terms.recombination).sum(0)


@pytest.mark.parametrize("shape", [(7, 1, 5), (300, 2, 96), (4, 1, 5000)])
@pytest.mark.parametrize("response", fused.RESPONSES)
@pytest.mark.parametrize("rule", fused.GATES)
def test_terms_are_those_of_the_eager_form(rule: Rule, response: Response, shape: tuple[int, int, int]) -> None:
    pre = pre_activation(*shape)
    for options in options_of(rule):
        if rule is rules.softhebb and response is not dot:
            assert not fused.fuses(response, rule, options, pre)
            continue
        assert fused.fuses(response, rule, options, pre)
        found, expected = fused.fused_terms(response, rule, options, pre), rule(response(pre), **options)
        assert found.total is not None
        for one, other in (
            (found.gate, expected.gate), (found.share, expected.share), (found.total, total(expected)),
            (found.recombination, expected.recombination),
        ):  # fmt: skip
            torch.testing.assert_close(one, other, rtol=3e-5, atol=1e-5)
        for name in ("mask", "power", "damping", "largest", "towards", "tangent", "competitive"):
            assert getattr(found, name) == getattr(expected, name)


def options_of(rule: Rule) -> list[dict[str, float]]:
    if rule is rules.kwta:
        return [{}, {"k": 1}, {"k": 8}]
    if rule is rules.pswta:
        return [{}, {"power": 1.5}]
    return [{}] if rule in (rules.hwta, rules.kmeans) else [{}, {"temperature": 0.3}]


def test_what_the_kernel_cannot_do_is_eager() -> None:
    pre = pre_activation(5, 1, 4)
    response = raised_cosine
    assert fused.fuses(response, rules.kwta, {"k": 8}, pre)
    assert not fused.fuses(response, rules.kwta, {"k": 9}, pre)
    assert not fused.fuses(response, rules.hpca, {}, pre)
    assert not fused.fuses(RESPONSES["rectified"], rules.swta, {}, pre)
    double = PreActivation(pre.dot_NGK.double(), None, pre.patch_norm_NG1)
    assert not fused.fuses(response, rules.swta, {}, double)
    with_lengths = PreActivation(pre.dot_NGK, torch.ones(1, 4), pre.patch_norm_NG1)
    assert not fused.fuses(response, rules.swta, {}, with_lengths)


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("rule", COMPETITIVE)
def test_a_network_learns_as_with_the_eager_form(rule: str, taught: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    kernel = fused.fused_terms

    def counted(*given: Any) -> Terms:
        nonlocal calls
        calls += 1
        return kernel(*given)

    monkeypatch.setattr(gradients, "fused_terms", counted)
    weights = []
    for terms in (gradients.fastest_terms, gradients.terms_of):
        model = network(torch.float32).train()
        learner = HebbianLearner(model, rule, lr=0.02, teacher=Teacher(3) if taught else None)
        learner.gradients._terms = terms
        for step in range(3):
            images = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(step))
            learner.learn(images, torch.arange(6) % 3 if taught else None)
        weights.append([layer.module.weight.detach() for layer in learner.layers])
    assert bool(calls) is not taught  # a teacher's rule is eager
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", COMPETITIVE)
def test_the_dots_are_read_once_and_the_gate_is_written_once(rule: str) -> None:
    """Beside them, the lengths of patches, which are one number for each, and sums over patches."""
    setting = RULES[rule]
    pre = pre_activation(4000, 1, 64)
    response = RESPONSES[setting.response]
    moved = traffic(lambda: gradients.fastest_terms(response, setting.rule, setting.options, pre, None, None))
    size = pre.dot_NGK.numel() * 4
    assert moved.others_read < 1.05 * size
    assert moved.others_written < 1.05 * size
