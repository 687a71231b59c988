"""Supervised training on the labelled subset: end to end, the classifier alone, or one after the other.

First `classifier_epochs` train the classifier alone, on frozen features; then `epochs` train all layers, those that
come pre-trained at `features_lr` times the rate (0: they stay frozen), times `layer_lr` by pattern: so some layers may
stay as the rule made them while backprop trains the others. Each phase runs through the schedule. An
untrained network has no features to spare: all of it learns at the full rate in both phases, unless features_lr is 0.
With few labels an epoch is a few steps, so `epochs=null` means at least MINIMUM_STEPS of them.
Frozen means frozen: no gradient, batch norm as it was learnt, no dropout inside the features. On frozen features the
classifier may be Hebbian. Layers `by_rule` go on learning by the rule in the very steps in which backprop trains the
others. The last epoch counts; `select=best` looks at the validation labels and counts them.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasthebb.patterns import last_match
from fasthebb_cli.compute.gradients import Backprop, in_micro_batches
from fasthebb_cli.data.dataset import Dataset, label_subset
from fasthebb_cli.data.loading import step_count
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.settings.config import Config
from fasthebb_cli.settings.finetune import FinetuneConfig
from fasthebb_cli.stages.evaluate import accuracy
from fasthebb_cli.stages.first_step import calibrate_batch_norm, fit_whitening
from fasthebb_cli.stages.heads import ClassMeans
from fasthebb_cli.stages.rule import layer_metrics, layer_warnings, learner_beside_backprop, ready, unserved_notes
from fasthebb_cli.stages.schedules import set_rate
from fasthebb_cli.stages.selection import Best, Patience
from fasthebb_cli.stages.task import Batch, Context, Stateful, Task, Totals

EPOCHS = 20  # as in the papers
MINIMUM_STEPS = 200


def finetune(context: Context) -> Task:
    settings, network, compute = context.settings, context.network, context.compute
    assert isinstance(settings, FinetuneConfig)
    indices = labelled(context.dataset, context.config)
    classifier, features = split_network(network)
    steps = step_count(len(indices), settings.batch_size)
    alone = settings.classifier_epochs
    together = settings.epochs or max(EPOCHS, math.ceil(MINIMUM_STEPS / steps))
    frozen = settings.features_lr == 0
    factor = 1.0 if context.untrained and not frozen else settings.features_lr
    groups = [
        *_groups(features, settings, settings.lr * factor),
        {"params": list(classifier.parameters()), "lr": settings.lr},
    ]
    leaves = [(name, module) for name, module in features.named_modules() if not any(module.children())]
    still = [module for name, module in leaves if last_match(name, settings.layer_lr, 1.0) == 0]
    optimizer = _optimizer(settings, groups)
    learner = learner_beside_backprop(context, settings, factor) if settings.by_rule else None
    means = ClassMeans(network) if settings.classifier == "hebbian" else None
    totals = Totals(compute.device)
    best = Best(network)
    patience = Patience(settings.patience) if settings.patience is not None else None
    whole = in_micro_batches(network, context.config.gpu.micro_batch)
    if context.begins:
        fit_whitening(context)
        if frozen:
            calibrate_batch_norm(context)

    def is_frozen(epoch: int) -> bool:
        return frozen or (epoch < alone and not context.untrained)

    def scored(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss, and how many are right."""
        with compute.autocast():
            scores = whole(images)
        loss = F.cross_entropy(scores.float(), labels) if len(labels) else scores.sum()
        return loss, (scores.argmax(1) == labels).sum()

    # the rule's part of a shared step is no graph, nor are micro-batches, which run again in the backward pass
    whole_step = learner is None and context.config.gpu.micro_batch is None
    backprop = Backprop(scored, optimizer, replay=context.replays and whole_step)

    def step(epoch: int, step: int, batch: Batch) -> None:
        first, length = (0, alone) if epoch < alone else (alone, together)
        freeze(features, frozen=is_frozen(epoch))
        for module in still:
            freeze(module, frozen=True)
        classifier.train(means is None)
        set_rate(optimizer, settings.schedule, step, steps, epoch - first, length)
        if learner is not None:
            ready(learner, paused=is_frozen(epoch))
            set_rate(learner.optimizer, settings.schedule, step, steps, epoch - first, length)
        count = len(batch.labels)
        if means is None:
            loss, hits = backprop(batch.images, batch.labels, share=count / batch.total, key=is_frozen(epoch))
            optimizer.step()
        else:
            means.listen()
            loss, hits = scored(batch.images, batch.labels)
            means.learn(batch.labels)
        if learner is not None:
            learner.step()
            learner.paused = True  # validation images teach nothing
        totals.add(train_loss=loss.detach() * count, train_top1=hits, samples=count)

    validation: dict[str, float] = {}

    def validate(epoch: int) -> Iterator[None]:
        if settings.select == "best":
            validation.update((yield from accuracy(context, context.dataset.validation, settings.batch_size)))

    def end_epoch(epoch: int) -> dict[str, Any]:
        metrics: dict[str, Any] = totals.means()
        if not torch.isfinite(torch.tensor(metrics["train_loss"])):
            raise RunError(f"the loss is {metrics['train_loss']} in epoch {epoch + 1}; lower finetune.lr")
        if settings.select == "best":
            metrics |= {f"validation_{name}": value for name, value in validation.items()}
            best.offer(metrics["validation_top1"], network)
            if patience is not None:
                patience.offer(metrics["validation_top1"], counts=epoch >= alone)
        if learner is not None and not is_frozen(epoch):
            metrics["by_rule"] = layer_metrics(learner, "rule.lr or finetune.layer_lr")
        return metrics

    def finish(last: Mapping[str, Any]) -> dict[str, Any]:
        if settings.select == "best":
            best.restore(network)
        if learner is not None:
            learner.finish()
        if means is not None:
            means.finish()
        freeze(features, frozen=False)
        backprop.finish()
        return {
            "top1": best.top1 if settings.select == "best" else None,
            "top5": None,
            "loss": last.get("train_loss"),
            "samples": len(indices),
            "labels_train": len(indices),
            "labels_validation": len(context.dataset.validation) if settings.select == "best" else 0,
        }

    parts: dict[str, Stateful | None] = {"learner": learner, "means": means, "patience": patience}
    state: dict[str, Stateful] = {"optimizer": optimizer, "totals": totals, "best": best}
    state |= {name: part for name, part in parts.items() if part is not None}
    return Task(
        epochs=alone + together,
        samples=len(indices),
        batch_size=settings.batch_size,
        batches=context.shuffled(indices),
        step=step,
        validate=validate,
        end_epoch=end_epoch,
        finish=finish,
        state=state,
        warnings=lambda metrics: layer_warnings(metrics.get("by_rule", {}), "rule.lr or finetune.layer_lr"),
        ended=lambda: patience.ended if patience is not None else "",
        notes=unserved_notes(learner) if learner is not None else [],
    )


def _groups(features: nn.Module, settings: FinetuneConfig, lr: float) -> list[dict[str, Any]]:
    """Parameters by their layer's factor on the rate."""
    groups: dict[float, list[nn.Parameter]] = {} if settings.layer_lr else {1.0: []}
    for name, parameter in features.named_parameters():
        factor = last_match(name.rpartition(".")[0], settings.layer_lr, 1.0)
        groups.setdefault(factor, []).append(parameter)
    return [{"params": parameters, "lr": lr * factor} for factor, parameters in groups.items()]


def _optimizer(settings: FinetuneConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if settings.optimizer == "SGD":
        nesterov = settings.momentum > 0
        return torch.optim.SGD(
            groups, momentum=settings.momentum, nesterov=nesterov, weight_decay=settings.weight_decay
        )
    made = torch.optim.Adam if settings.optimizer == "Adam" else torch.optim.AdamW
    return made(groups, weight_decay=settings.weight_decay)


def labelled(dataset: Dataset, config: Config) -> Tensor:
    """The training images whose labels may be used.

    Raises:
        InputError: there are no labels, or too few of them.
    """
    if not dataset.classes:
        raise InputError(f"dataset {dataset.name} has no labels: it serves `fasthebb pretrain` only, not fine-tuning")
    positions = label_subset(
        dataset.labels[dataset.train], config.label_fraction, config.seed, kind=config.label_subset
    )
    return dataset.train[positions]


def split_network(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The classifier and the features before it, as modules that share the network's parameters."""
    children = dict(network.named_children())
    if "classifier" not in children:
        raise InputError(f"model: the network has no child called classifier; it has: {', '.join(children)}")
    features = nn.ModuleDict({name: module for name, module in children.items() if name != "classifier"})
    return children["classifier"], features


def freeze(features: nn.Module, *, frozen: bool) -> None:
    """Frozen features get no gradient and stand in evaluation mode, so batch norm and dropout stand still too."""
    features.requires_grad_(not frozen)
    features.train(not frozen)
