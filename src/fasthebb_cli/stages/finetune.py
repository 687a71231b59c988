"""Supervised training on the labelled subset: end to end, the classifier alone, or one after the other.

The first `classifier_epochs` train the classifier on frozen features; then the features learn too, at `features_lr`
times the classifier's rate (0: they stay frozen). Frozen means frozen: no gradient, batch norm as it was learnt and
no dropout inside the features. The last epoch counts; `select=best` looks at the validation labels and counts them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasthebb_cli.config import FinetuneConfig
from fasthebb_cli.data.dataset import label_subset
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.stages.evaluate import accuracy
from fasthebb_cli.stages.schedules import set_rate
from fasthebb_cli.stages.task import Batch, Context, Task, Totals

CALIBRATION_BATCHES = 20  # of training images, to give fresh frozen features their batch-norm statistics


def finetune(context: Context) -> Task:
    settings, network, compute = context.settings, context.network, context.compute
    assert isinstance(settings, FinetuneConfig)
    indices = labelled(context)
    classifier, features = split_network(network)
    frozen_for_good = settings.features_lr == 0
    optimizer = torch.optim.SGD(
        [
            {"params": list(features.parameters()), "lr": settings.lr * settings.features_lr},
            {"params": list(classifier.parameters()), "lr": settings.lr},
        ],
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        weight_decay=settings.weight_decay,
    )
    totals = Totals(compute.device)
    best = Best(network)
    steps = -(-len(indices) // settings.batch_size)
    last: dict[str, float] = {}
    if context.fresh and frozen_for_good:
        calibrate_batch_norm(context)

    def step(epoch: int, step: int, batch: Batch) -> None:
        frozen = frozen_for_good or epoch < settings.classifier_epochs
        freeze(features, frozen)
        classifier.train()
        set_rate(optimizer, settings.schedule, step, steps, epoch, settings.epochs)
        with compute.autocast():
            scores = network(batch.images)
        loss = F.cross_entropy(scores.float(), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        count = len(batch.labels)
        hits = (scores.argmax(1) == batch.labels).sum()
        totals.add(train_loss=loss.detach() * count, train_top1=hits, samples=count)

    def end_epoch(epoch: int) -> dict[str, Any]:
        metrics = totals.means()
        if not torch.isfinite(torch.tensor(metrics["train_loss"])):
            raise RunError(f"the loss is {metrics['train_loss']} in epoch {epoch + 1}; lower finetune.lr")
        if settings.select == "best":
            validation = accuracy(context, context.dataset.validation, settings.batch_size)
            metrics |= {f"validation_{name}": value for name, value in validation.items()}
            best.offer(metrics["validation_top1"], network)
        last.clear()
        last.update(metrics)
        return metrics

    def finish() -> dict[str, Any]:
        if settings.select == "best":
            best.restore(network)
        freeze(features, False)
        return {
            "top1": best.top1 if settings.select == "best" else None,
            "top5": None,
            "loss": last.get("train_loss"),
            "samples": len(indices),
            "labels_train": len(indices),
            "labels_validation": len(context.dataset.validation) if settings.select == "best" else 0,
        }

    return Task(
        epochs=settings.epochs,
        samples=len(indices),
        batch_size=settings.batch_size,
        batches=lambda epoch, start: context.batches(
            indices, settings.batch_size, epoch=epoch, start=start, augmentation=settings.augment
        ),
        step=step,
        end_epoch=end_epoch,
        finish=finish,
        state={"optimizer": optimizer, "totals": totals, "best": best},
    )


def labelled(context: Context) -> Tensor:
    """The training images whose labels may be used."""
    dataset, config = context.dataset, context.config
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
    features = nn.ModuleList(module for name, module in children.items() if name != "classifier")
    return children["classifier"], features


def freeze(features: nn.Module, frozen: bool) -> None:
    """Frozen features get no gradient and stand in evaluation mode, so batch norm and dropout stand still too."""
    features.requires_grad_(not frozen)
    features.train(not frozen)


@torch.no_grad()
def calibrate_batch_norm(context: Context) -> None:
    """Random features deserve normalised inputs as well: statistics from training images, without labels."""
    norms = [m for m in context.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the plain mean over batches
    context.network.train()
    for number, batch in enumerate(context.batches(context.dataset.train, 64, epoch=0)):
        if number == CALIBRATION_BATCHES:
            break
        context.network(batch.images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


class Best:
    """The weights of the best epoch so far by validation accuracy, the first one among equals."""

    def __init__(self, network: nn.Module) -> None:
        self.top1 = -1.0
        self.weights: dict[str, Tensor] = {}

    def offer(self, top1: float, network: nn.Module) -> None:
        if top1 > self.top1:
            self.top1 = top1
            self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def restore(self, network: nn.Module) -> None:
        network.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"top1": self.top1, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.top1, self.weights = state["top1"], state["weights"]
