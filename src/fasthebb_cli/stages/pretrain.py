"""Hebbian pre-training: every training image, no label, no backward pass.

All layers learn at once while the network runs forward in training mode (batch norm collects its statistics). There
is no loss: the metrics of an epoch are each layer's relative update, dead units and range of weight lengths.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from fasthebb_cli.config import PretrainConfig
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.hebb.learner import HebbianLearner, RuleSetting
from fasthebb_cli.stages.schedules import set_rate
from fasthebb_cli.stages.start import fit_whitening
from fasthebb_cli.stages.task import Batch, Context, Task


def pretrain(context: Context) -> Task:
    settings, dataset, compute = context.settings, context.dataset, context.compute
    assert isinstance(settings, PretrainConfig)
    indices = torch.cat([dataset.train, dataset.unlabelled])
    learner = _learner(context, settings)
    samples = len(indices)
    steps = -(-samples // settings.batch_size)
    if context.begins:
        fit_whitening(context)
    context.network.train()

    def step(epoch: int, step: int, batch: Batch) -> None:
        set_rate(learner.optimizer, settings.schedule, step, steps, epoch, settings.epochs)
        with compute.autocast():
            learner.observe(batch.images)
        learner.step()

    def end_epoch(epoch: int) -> dict[str, Any]:
        layers = {name: asdict(statistics) for name, statistics in learner.statistics().items()}
        for name, layer in layers.items():
            if not math.isfinite(layer["norm_maximum"]):
                raise RunError(f"layer {name} diverged: its weights are not finite; lower pretrain.lr or layer_lr")
        return {"layers": layers}

    def finish() -> dict[str, Any]:
        learner.finish()
        return {"top1": None, "top5": None, "loss": None, "samples": samples, "labels_train": 0, "labels_validation": 0}

    return Task(
        epochs=settings.epochs,
        samples=samples,
        batch_size=settings.batch_size,
        batches=lambda epoch, start: context.batches(
            indices, settings.batch_size, epoch=epoch, start=start, augmentation=settings.augment
        ),
        step=step,
        end_epoch=end_epoch,
        finish=finish,
        state={"learner": learner},
        warnings=_warnings,
    )


def _learner(context: Context, settings: PretrainConfig) -> HebbianLearner:
    rule = context.config.rule
    assert rule.response is not None
    if settings.lr is None:
        raise InputError("pretrain.lr has no value and rule.lr neither; set one, as in pretrain.lr=0.1")
    try:
        return HebbianLearner(
            context.network,
            RuleSetting(rule.name, rule.response, rule.projection),
            lr=settings.lr,
            options=rule.options,
            include=settings.include,
            exclude=settings.exclude,
            layer_lr=settings.layer_lr,
        )
    except ValueError as error:
        raise InputError(f"rule: {error}") from error


def _warnings(metrics: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, layer in metrics["layers"].items():
        if layer["dead"] > layer["units"] / 2:
            lines.append(f"layer {name}: {layer['dead']} of {layer['units']} units are dead; lower its rate (layer_lr)")
        if layer["norm_maximum"] > 100:
            lines.append(
                f"layer {name} is diverging: a weight has length {layer['norm_maximum']:.3g}; lower pretrain.lr"
            )
    return lines
