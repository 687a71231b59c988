"""What a user can choose: the rule and its response, how an update becomes a step, and how the work is carried out.

To add a rule: a function in rules.py, an entry in RULES here, a file conf/rule/NAME.yaml.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fasthebb import rules
from fasthebb.patterns import last_match
from fasthebb.responses import Moments
from fasthebb.rules import Rule, Terms, check_terms

MOMENTUM = 0.1  # of running moments, as in the authors' code


@dataclass(frozen=True)
class RuleSetting:
    """A rule, its response, its options, and what a layer outputs while it learns.

    Args:
        rule: a function of rules.py, or any function like them. If it has an argument `running`, it gets the running
            moments of its response (momentum MOMENTUM); they include the present batch.
        response: a key of RESPONSES.
        projection: while it learns, a layer outputs x.w / |w|; at the end its weight vectors get length 1.
        options: keyword arguments of the rule.
        layer_options: pattern of layer names -> more keyword arguments for these layers; the last match counts.
    """

    rule: Rule
    response: str
    projection: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    layer_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def with_options(self, **options: Any) -> "RuleSetting":
        """The same rule with more options: `RULES["kwta"].with_options(k=3)`."""
        return replace(self, options={**self.options, **options})

    def options_of(self, layer: str) -> dict[str, Any]:
        """The options for a layer, by its name."""
        return dict(self.options) | dict(last_match(layer, self.layer_options, {}))

    @cached_property
    def running(self) -> bool:
        """Whether the rule needs running moments."""
        return "running" in inspect.signature(self.rule).parameters

    def example_terms(self, options: Mapping[str, Any]) -> Terms:
        """The rule's terms for a made-up response of one patch and two units.

        Raises:
            ValueError: an option that the rule does not have, or a value that it refuses, or it gives no Terms.
        """
        check_options(self.rule, options)
        y_NGK = torch.full((1, 1, 2), 0.5)
        return self._checked(y_NGK, options)

    def try_rule(self, options: Mapping[str, Any]) -> Terms:
        """The rule's terms for a made-up response of three patches, two groups and four units.

        Raises:
            ValueError: as `example_terms`, or a field of the terms is of another type, shape or range.
        """
        check_options(self.rule, options)
        return self._checked(torch.linspace(0, 1, 24).reshape(3, 2, 4), options)

    def _checked(self, y_NGK: Tensor, options: Mapping[str, Any]) -> Terms:
        terms = self.rule(y_NGK, *([Moments.of(y_NGK)] if self.running else []), **options)
        check_terms(terms, y_NGK)
        return terms


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
    "kmeans": RuleSetting(rules.kmeans, "nearness"),
    "softhebb": RuleSetting(rules.softhebb, "dot"),
    "ica": RuleSetting(rules.ica, "dot"),
    "hica": RuleSetting(rules.hica, "dot"),
}


@dataclass(frozen=True, kw_only=True)
class StepSetting:
    """How an update becomes a step, besides the learning rate.

    Args:
        normalise: weight vectors have length 1 after each step.
        per_input: the layer's learning rate is divided by sqrt(D), where D is the number of inputs of a unit.
        norm_power: p >= 0; the update of a unit is multiplied by | |w| - 1 |^p, so that its length settles at 1
            (SoftHebb: 0.5). None: no factor.
    """

    normalise: bool = False
    per_input: bool = False
    norm_power: float | None = None


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the work is carried out. The weights are the same, except for rounding.

    Args:
        micro_batch: number of images that run through the network at a time, >= 1; None: the whole batch.
        processes: a process group, where each process observes a part of every batch; None: this process is alone.
        compile: torch.compile fuses the element-wise work of responses and rules.
        replay: `learn` records its work as a CUDA graph and replays it. For one process, without `compile`, and for
            networks and rules in which no Python code depends on a tensor's values.
    """

    micro_batch: int | None = None
    processes: dist.ProcessGroup | None = None
    compile: bool = False
    replay: bool = False


def setting_of(rule: str | RuleSetting) -> RuleSetting:
    """A key of RULES as its setting; a setting as it is.

    Raises:
        ValueError: an unknown key.
    """
    if isinstance(rule, RuleSetting):
        return rule
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; choose one of: {', '.join(RULES)}")
    return RULES[rule]


def check_options(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Checks options against the keyword-only arguments of a function.

    Raises:
        ValueError: an unknown option, or no number where the function's annotation asks for one.
    """
    parameters = inspect.signature(function).parameters
    accepted = [name for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    unknown = [name for name in options if name not in accepted]
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r} of {function.__name__}; it accepts: {', '.join(accepted)}")
    for name, value in options.items():
        if parameters[name].annotation in (int, float) and not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, not {value!r}")
