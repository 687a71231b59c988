"""The cell's rule on a network: from settings to a learner, and from its statistics to metrics and warnings."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from fasthebb.learner import HebbianLearner
from fasthebb.own import OwnError, imported, own_errors
from fasthebb.responses import RESPONSES
from fasthebb.settings import RULES, Execution, RuleSetting, StepSetting
from fasthebb_cli.compute import processes
from fasthebb_cli.errors import InputError, RunError, bad_input
from fasthebb_cli.settings.config import RuleConfig
from fasthebb_cli.stages.task import Context

NO_RULES = ("vae", "random", "none")  # what rule.name may be besides a Hebbian rule


def learner_of(
    context: Context, key: str, *, micro_batch: int | None = None, replay: bool = False, **arguments: Any
) -> HebbianLearner:
    """The rule, as the configuration has it, attached to the network.

    Args:
        key: the settings that an error may come from besides the rule's.
        micro_batch, replay: see `Execution`.
        arguments: of HebbianLearner, besides the rule's own.

    Raises:
        InputError: an unknown rule or option, or no layer that could learn.
    """
    execution = Execution(
        micro_batch=micro_batch, processes=processes.group(), compile=context.compute.compile, replay=replay
    )
    return attached(context.config.rule, context.network, key, execution=execution, **arguments)


def attached(rule: RuleConfig, network: nn.Module, key: str, **arguments: Any) -> HebbianLearner:
    """As `learner_of`, for any network, outside of a stage."""
    setting = rule_setting(rule)
    step = StepSetting(normalise=rule.normalise, per_input=rule.per_input, norm_power=rule.norm_power)
    try:
        with own_errors("rule.name", rule.name, ValueError):
            return HebbianLearner(network, setting, step=step, **arguments)
    except OwnError as error:
        raise InputError(str(error)) from error
    except (ValueError, TypeError) as error:
        raise InputError(f"rule {rule.name} or {key}: {error}") from error


def rule_setting(rule: RuleConfig) -> RuleSetting:
    """The rule that the settings name, with its usual response and projection unless they are set.

    Raises:
        InputError: an unknown rule or response.
    """
    if ":" in rule.name:
        with bad_input():
            setting = RuleSetting(imported("rule.name", rule.name), "dot")
    elif rule.name in RULES:
        setting = RULES[rule.name]
    elif rule.name in NO_RULES:
        raise InputError(f"rule={rule.name} is no Hebbian rule; choose one of: {', '.join(RULES)}")
    else:
        choices = ", ".join([*RULES, *NO_RULES])
        raise InputError(f"rule.name: unknown {rule.name!r}; use {choices} or my_package.module:function")
    if rule.response is not None and rule.response not in RESPONSES:
        raise InputError(f"rule.response must be one of {', '.join(RESPONSES)}, not {rule.response!r}")
    projection = setting.projection if rule.projection is None else rule.projection
    return replace(
        setting,
        response=rule.response or setting.response,
        projection=projection,
        options=rule.options,
        layer_options=rule.layer_options,
    )


def layer_metrics(learner: HebbianLearner, keys: str) -> dict[str, dict[str, Any]]:
    """Layer name -> the learner's statistics of an epoch, which start again.

    Args:
        keys: for the message: the settings to lower when a layer diverges.

    Raises:
        RunError: a layer's weights are not finite.
    """
    layers = {name: asdict(statistics) for name, statistics in learner.statistics().items()}
    for name, layer in layers.items():
        if not math.isfinite(layer["norm_maximum"]):
            raise RunError(f"layer {name} diverged: its weights are not finite; lower {keys}")
    return layers


def layer_warnings(layers: Mapping[str, Mapping[str, Any]], rate: str) -> list[str]:
    """One line for each thing that looks wrong in `layer_metrics`.

    Args:
        rate: the settings to lower when a layer diverges.
    """
    lines = []
    for name, layer in layers.items():
        if not layer["steps"]:
            lines.append(f"layer {name} learnt nothing: the network never called it")
        elif layer["dead"] > layer["units"] / 2:
            lines.append(f"layer {name}: {layer['dead']} of {layer['units']} units are dead; lower its rate (layer_lr)")
        if layer["norm_maximum"] > 100:
            lines.append(f"layer {name} is diverging: a weight has length {layer['norm_maximum']:.3g}; lower {rate}")
    return lines


def untrainable_notes(learner: HebbianLearner) -> list[str]:
    """Layers that were asked to learn and can't by this rule, or to be taught and can't, one line each."""
    none = "(the network itself)"
    notes = [f"layer {name or none} does not learn: {reason}" for name, reason in learner.untrainable.items()]
    if learner.teacher is None:
        return notes
    fewer = f"it has, or pretrain.teacher_units gives it, fewer units than the {learner.teacher.classes} classes"
    return notes + [f"layer {name} learns without the teacher: {fewer}" for name in learner.without_teacher]
