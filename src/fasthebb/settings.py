"""What can be chosen of Hebbian learning: the rules by name, each with its response, and how an update becomes a step.

To add a rule: a function in rules.py, an entry in RULES, a file in conf/rule/, its naive form in tests/reference.py.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fasthebb import rules
from fasthebb.responses import Moments
from fasthebb.rules import Rule, Terms


@dataclass(frozen=True)
class RuleSetting:
    """A rule, on which response, and what the layer hands on.

    Args:
        rule: one of rules.py or any function like them. One that has an argument `running` is given running moments
            of the response, with momentum MOMENTUM and this batch included.
        response: a key of RESPONSES.
        projection: the layer's output is x.w / |w| while learning, and weights have length 1 at the end.
    """

    rule: Rule
    response: str
    projection: bool = False

    @property
    def running(self) -> bool:
        return "running" in inspect.signature(self.rule).parameters

    def tried(self, options: Mapping[str, Any]) -> Terms:
        """What the rule says of a made-up response of one patch and two units.

        Raises:
            ValueError: options that it doesn't have, or values that it refuses.
        """
        check_options(self.rule, options)
        y_NGK = torch.full((1, 1, 2), 0.5)
        return self.rule(y_NGK, *([Moments.of(y_NGK)] if self.running else []), **options)


MOMENTUM = 0.1  # of running moments, as in the authors' code
RULES: dict[str, RuleSetting] = {
    "hpca": RuleSetting(rules.hpca, "rectified"),
    "hpca_tanh": RuleSetting(rules.hpca, "tanh"),
    "hpca_adaptive": RuleSetting(rules.hpca_adaptive, "dot"),
    "oja": RuleSetting(rules.oja, "dot"),
    "gha": RuleSetting(rules.gha, "dot"),
    "subspace": RuleSetting(rules.subspace, "dot"),
    "instar": RuleSetting(rules.instar, "rectified"),
    "hebb": RuleSetting(rules.hebb, "dot"),
    "bcm": RuleSetting(rules.bcm, "rectified"),
    "swta": RuleSetting(rules.swta, "raised_cosine", projection=True),
    "pswta": RuleSetting(rules.pswta, "raised_cosine", projection=True),
    "hwta": RuleSetting(rules.hwta, "raised_cosine", projection=True),
    "kwta": RuleSetting(rules.kwta, "raised_cosine", projection=True),
    "softhebb": RuleSetting(rules.softhebb, "dot"),
    "ica": RuleSetting(rules.ica, "dot"),
    "hica": RuleSetting(rules.hica, "dot"),
}


@dataclass(frozen=True)
class StepSetting:
    """How an update becomes a step, besides the learning rate.

    Args:
        normalise: weight vectors have length 1 after each step.
        per_input: a layer's rate is divided by sqrt(D), D the inputs of a unit.
        norm_power: p; a unit's rate is multiplied by | |w| - 1 |^p, so that it settles at length 1 (SoftHebb: 0.5).
    """

    normalise: bool = False
    per_input: bool = False
    norm_power: float | None = None


def setting_of(rule: str | RuleSetting) -> RuleSetting:
    if isinstance(rule, RuleSetting):
        return rule
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; choose one of: {', '.join(RULES)}")
    return RULES[rule]


def check_options(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Options must be keyword-only arguments of the function, and numbers where it says so; the message names them."""
    parameters = inspect.signature(function).parameters
    accepted = [name for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    unknown = [name for name in options if name not in accepted]
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r} of {function.__name__}; it accepts: {', '.join(accepted)}")
    for name, value in options.items():
        if parameters[name].annotation in (int, float) and not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, not {value!r}")
