"""The cell's rule on a network: what a stage needs to let layers learn by it, and what it tells of them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from fasthebb.learner import HebbianLearner
from fasthebb.own import imported
from fasthebb.patterns import last_match, matches
from fasthebb.responses import RESPONSES
from fasthebb.settings import RULES, RuleSetting, StepSetting
from fasthebb_cli.compute import processes
from fasthebb_cli.errors import InputError, RunError, bad_input
from fasthebb_cli.settings.config import Config, RuleConfig
from fasthebb_cli.settings.finetune import FinetuneConfig
from fasthebb_cli.settings.kind import StageSettings
from fasthebb_cli.stages.optimizers import optimizer_of
from fasthebb_cli.stages.task import Context


def learner_of(context: Context, key: str, **arguments: Any) -> HebbianLearner:
    """The rule, as the configuration has it, attached to the network.

    Args:
        key: the settings that an error may come from besides the rule's.
        arguments: of HebbianLearner, besides the rule's own.

    Raises:
        InputError: an unknown rule or option, or no layer that could learn.
    """
    return attached(
        context.config.rule,
        context.network,
        key,
        compile=context.compute.compile,
        processes=processes.group(),
        **arguments,
    )


def attached(rule: RuleConfig, network: nn.Module, key: str, **arguments: Any) -> HebbianLearner:
    """As `learner_of`, on any network, without a stage around it."""
    setting = rule_setting(rule)
    step = StepSetting(rule.normalise, rule.per_input, rule.norm_power)
    try:
        return HebbianLearner(
            network, setting, options=rule.options, layer_options=rule.layer_options, step=step, **arguments
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"rule {rule.name} or {key}: {error}") from error


def learner_beside_backprop(context: Context, settings: FinetuneConfig, factor: float) -> HebbianLearner:
    """The rule on the layers that `by_rule` names, at its own rate times `factor` and finetune.layer_lr; paused.

    Raises:
        InputError: as `check_by_rule`.
    """
    rule = context.config.rule
    factors = check_by_rule(context.config, settings, context.network)
    assert rule.lr is not None
    learner = learner_of(
        context,
        "finetune.by_rule",
        lr=rule.lr * factor,
        include=settings.by_rule,
        exclude=["classifier"],
        layer_lr={name: last_match(name, rule.layer_lr, 1.0) * factors[name] for name in factors},
        optimizer=optimizer_of("rule.optimizer", rule.optimizer, {}),
    )
    learner.paused = True  # but in a step: a resumed epoch may have none left before it looks at validation images
    return learner


def check_by_rule(config: Config, settings: StageSettings, network: nn.Module) -> dict[str, float]:
    """Each layer's factor on the rate, by finetune.layer_lr, if `by_rule` can be.

    Raises:
        InputError: a name that no layer has, one that is kept still, or a rule without a rate.
    """
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    factors = {name: last_match(name, settings.layer_lr, 1.0) for name in names}
    rule_setting(config.rule)  # of rule=none says that it is no rule, rather than that it has no rate
    if config.rule.lr is None:
        raise InputError("rule.lr has no value, and finetune.by_rule needs it; set it, as in rule.lr=0.1")
    if config.gpu.micro_batch is not None:
        raise InputError("finetune.by_rule sees its batches whole; leave out gpu.micro_batch")
    learning = [name for name in names if not matches(name, ["classifier"])]
    for pattern in settings.by_rule:
        if not any(matches(name, [pattern]) for name in learning):
            choices = ", ".join(learning)
            raise InputError(f"finetune.by_rule: no layer that could learn is called {pattern!r}; there are: {choices}")
    if halted := [name for name in learning if matches(name, settings.by_rule) and factors[name] == 0]:
        raise InputError(f"finetune.by_rule: finetune.layer_lr keeps {halted[0]} still; leave it out of one of them")
    return factors


def ready(learner: HebbianLearner, *, paused: bool) -> None:
    """Before a step that backprop shares: the layers of the rule get no gradient, but hand it on."""
    learner.paused = paused
    for layer in learner.layers:
        layer.module.requires_grad_(False)


def rule_setting(rule: RuleConfig) -> RuleSetting:
    """The rule that the configuration names, with its usual response unless another is asked for."""
    if ":" in rule.name:
        with bad_input():
            setting = RuleSetting(imported("rule.name", rule.name), "dot")
    elif rule.name in RULES:
        setting = RULES[rule.name]
    elif rule.name in ("vae", "none"):
        raise InputError(f"rule={rule.name} is no Hebbian rule; choose one of: {', '.join(RULES)}")
    else:
        choices = ", ".join([*RULES, "vae", "none"])
        raise InputError(f"rule.name: unknown {rule.name!r}; use {choices} or my_package.module:function")
    if rule.response is not None and rule.response not in RESPONSES:
        raise InputError(f"rule.response must be one of {', '.join(RESPONSES)}, not {rule.response!r}")
    projection = setting.projection if rule.projection is None else rule.projection
    return replace(setting, response=rule.response or setting.response, projection=projection)


def layer_metrics(learner: HebbianLearner, keys: str) -> dict[str, dict[str, Any]]:
    """Statistics of an epoch by layer.

    Raises:
        RunError: a layer's weights are not finite; it names the keys that would help.
    """
    layers = {name: asdict(statistics) for name, statistics in learner.statistics().items()}
    for name, layer in layers.items():
        if not math.isfinite(layer["norm_maximum"]):
            raise RunError(f"layer {name} diverged: its weights are not finite; lower {keys}")
    return layers


def layer_warnings(layers: Mapping[str, Mapping[str, Any]], rate: str) -> list[str]:
    """What looks wrong in `layer_metrics`, one line each."""
    lines = []
    for name, layer in layers.items():
        if not layer["steps"]:
            lines.append(f"layer {name} learnt nothing: the network never called it")
        elif layer["dead"] > layer["units"] / 2:
            lines.append(f"layer {name}: {layer['dead']} of {layer['units']} units are dead; lower its rate (layer_lr)")
        if layer["norm_maximum"] > 100:
            lines.append(f"layer {name} is diverging: a weight has length {layer['norm_maximum']:.3g}; lower {rate}")
    return lines


def unserved_notes(learner: HebbianLearner) -> list[str]:
    """Layers that were asked to learn and can't by this rule, or to be taught and can't, one line each."""
    notes = [f"layer {name or '(the network itself)'} does not learn: {why}" for name, why in learner.unserved.items()]
    fewer = f"it has, or pretrain.teacher_units gives it, fewer units than the {learner.classes} classes"
    return notes + [f"layer {name} learns without the teacher: {fewer}" for name in learner.untaught]
