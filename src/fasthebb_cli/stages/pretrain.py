"""Hebbian pre-training: every training image, no label, no backward pass.

All layers learn at once, or one after the other, while the network runs forward in training mode (batch norm collects
its statistics). There is no loss: the metrics of an epoch are each layer's relative update, dead units and range of
weight lengths. With a teacher signal it is supervised: it then sees the labelled subset alone.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from fasthebb_cli import processes
from fasthebb_cli.config import PretrainConfig, RuleConfig
from fasthebb_cli.data.loading import step_count
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.hebb.learner import HebbianLearner
from fasthebb_cli.hebb.responses import RESPONSES
from fasthebb_cli.hebb.settings import RULES, RuleSetting, StepSetting
from fasthebb_cli.imports import imported
from fasthebb_cli.stages.finetune import labelled
from fasthebb_cli.stages.optimizers import learning_rate, optimizer_of
from fasthebb_cli.stages.parallel import in_parts
from fasthebb_cli.stages.schedules import set_rate
from fasthebb_cli.stages.start import fit_whitening
from fasthebb_cli.stages.task import Batch, Context, Task
from fasthebb_cli.stages.vae import vae


def pretrain(context: Context) -> Task:
    settings, dataset, compute = context.settings, context.dataset, context.compute
    assert isinstance(settings, PretrainConfig)
    if context.config.rule.name == "vae":
        return vae(context)
    indices = labelled(dataset, context.config) if settings.teacher else torch.cat([dataset.train, dataset.unlabelled])
    in_parts(context.network, context.config.gpu.micro_batch)  # says so if it can't be
    learner = _learner(context, settings)
    samples = len(indices)
    steps = step_count(samples, settings.batch_size)
    phases = [layer.name for layer in learner.layers] if settings.layer_by_layer else [None]
    if context.begins:
        fit_whitening(context)
    context.network.train()

    def step(epoch: int, step: int, batch: Batch) -> None:
        phase, epoch_of_phase = divmod(epoch, settings.epochs)
        learner.learn_only(phases[phase])
        set_rate(learner.optimizer, settings.schedule, step, steps, epoch_of_phase, settings.epochs)
        with compute.autocast():
            learner.observe(batch.images, batch.labels if settings.teacher else None)
        learner.step()

    def end_epoch(epoch: int) -> dict[str, Any]:
        learner.learn_only(phases[epoch // settings.epochs])  # a resumed epoch may have had no step left
        layers = {name: asdict(statistics) for name, statistics in learner.statistics().items()}
        for name, layer in layers.items():
            if not math.isfinite(layer["norm_maximum"]):
                raise RunError(f"layer {name} diverged: its weights are not finite; lower pretrain.lr or layer_lr")
        return {"layers": layers}

    def finish(last: Mapping[str, Any]) -> dict[str, Any]:
        learner.finish()
        labels = samples if settings.teacher else 0
        none = {"top1": None, "top5": None, "loss": None}
        return none | {"samples": samples, "labels_train": labels, "labels_validation": 0}

    notes = [f"layer {name or '(the network itself)'} does not learn: {why}" for name, why in learner.unserved.items()]
    return Task(
        epochs=settings.epochs * len(phases),
        samples=samples,
        batch_size=settings.batch_size,
        batches=context.shuffled(indices),
        step=step,
        end_epoch=end_epoch,
        finish=finish,
        state={"learner": learner},
        warnings=_warnings,
        notes=notes,
    )


def _learner(context: Context, settings: PretrainConfig) -> HebbianLearner:
    rule = context.config.rule
    setting = rule_setting(rule)
    try:
        return HebbianLearner(
            context.network,
            setting,
            lr=learning_rate(settings),
            options=rule.options,
            include=settings.include,
            exclude=settings.exclude,
            layer_lr=settings.layer_lr,
            layer_options=rule.layer_options,
            step=StepSetting(rule.normalise, rule.per_input, rule.norm_power),
            classes=len(context.dataset.classes) if settings.teacher else None,
            assigned=settings.teacher_units,
            optimizer=optimizer_of(settings),
            compile=context.compute.compile,
            processes=processes.group(),
            micro_batch=context.config.gpu.micro_batch,
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"rule {rule.name} or pretrain: {error}") from error


def rule_setting(rule: RuleConfig) -> RuleSetting:
    """The rule that the configuration names, with its usual response unless another is asked for."""
    if ":" in rule.name:
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


def _warnings(metrics: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, layer in metrics["layers"].items():
        if not layer["steps"]:
            lines.append(f"layer {name} learnt nothing: the network never called it")
        elif layer["dead"] > layer["units"] / 2:
            lines.append(f"layer {name}: {layer['dead']} of {layer['units']} units are dead; lower its rate (layer_lr)")
        if layer["norm_maximum"] > 100:
            lines.append(
                f"layer {name} is diverging: a weight has length {layer['norm_maximum']:.3g}; lower pretrain.lr"
            )
    return lines
