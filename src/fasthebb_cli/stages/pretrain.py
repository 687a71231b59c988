"""Hebbian pre-training: all training images, no label, no backward pass.

1. The network runs forward in training mode, so that batch norm collects its statistics.
2. In each step every layer learns by the rule; with `layer_by_layer` one layer after the other has its epochs.
3. There is no loss. An epoch's metrics are each layer's relative update, dead units and range of weight lengths.

With `teacher` it is supervised, and reads the labelled subset only.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from fasthebb.learner import HebbianLearner
from fasthebb.patterns import unmatched
from fasthebb.teacher import Teacher
from fasthebb_cli.compute.gradients import micro_batched
from fasthebb_cli.compute.graphs import graph_errors
from fasthebb_cli.data.loading import step_count
from fasthebb_cli.settings.pretrain import PretrainConfig
from fasthebb_cli.stages.autoencoder import vae
from fasthebb_cli.stages.first_step import fit_whitening
from fasthebb_cli.stages.images import all_training_images, labelled_images
from fasthebb_cli.stages.optimizers import learning_rate, rule_optimizer
from fasthebb_cli.stages.random_filters import random_filters
from fasthebb_cli.stages.rule import layer_metrics, layer_warnings, learner_of, untrainable_notes
from fasthebb_cli.stages.schedules import set_rate
from fasthebb_cli.stages.task import Batch, Context, Task, results


def pretrain(context: Context) -> Task:
    settings, dataset, compute = context.settings, context.dataset, context.compute
    assert isinstance(settings, PretrainConfig)
    if context.config.rule.name == "vae":
        return vae(context)
    if context.config.rule.name == "random":
        return random_filters(context)
    indices = labelled_images(dataset, context.config) if settings.teacher else all_training_images(dataset)
    micro_batched(context.network, context.config.gpu.micro_batch)  # raises an InputError if it can't be
    learner = _learner(context, settings)
    samples = len(indices)
    steps = step_count(samples, settings.batch_size)
    phases = [layer.name for layer in learner.layers] if settings.layer_by_layer else [None]  # None: all layers
    if context.begins:
        fit_whitening(context)
    context.network.train()

    def step(epoch: int, step: int, batch: Batch) -> None:
        phase, epoch_in_phase = divmod(epoch, settings.epochs)
        learner.learn_only(phases[phase])
        set_rate(learner.optimizer, settings.schedule, step, steps, epoch_in_phase, settings.epochs)
        with graph_errors(), compute.autocast():
            learner.learn(batch.images, batch.labels if settings.teacher else None)

    def end_epoch(epoch: int) -> dict[str, Any]:
        learner.learn_only(phases[epoch // settings.epochs])  # no step has done so if the run resumed at its end
        return {"layers": layer_metrics(learner, "pretrain.lr or layer_lr")}

    def finish(last: Mapping[str, Any]) -> dict[str, Any]:
        learner.finish()
        return results(samples=samples, labels_train=samples if settings.teacher else 0)

    return Task(
        epochs=settings.epochs * len(phases),
        samples=samples,
        batch_size=settings.batch_size,
        batches=context.shuffled(indices),
        step=step,
        end_epoch=end_epoch,
        finish=finish,
        state={"learner": learner},
        warnings=lambda metrics: layer_warnings(metrics["layers"], "pretrain.lr"),
        notes=untrainable_notes(learner) + _unused(context.network, settings),
    )


def _unused(network: nn.Module, settings: PretrainConfig) -> list[str]:
    """Patterns in layer_lr that match no layer, such as those of a rule's YAML written for another network."""
    names = [name for name, _ in network.named_modules() if name]
    return [f"pretrain.layer_lr: no layer is called {pattern}" for pattern in unmatched(settings.layer_lr, names)]


def _learner(context: Context, settings: PretrainConfig) -> HebbianLearner:
    teacher = Teacher(len(context.dataset.classes), settings.teacher_units) if settings.teacher else None
    return learner_of(
        context,
        "pretrain",
        lr=learning_rate(settings),
        include=settings.include,
        exclude=settings.exclude,
        layer_lr=settings.layer_lr,
        teacher=teacher,
        optimizer=rule_optimizer("pretrain.optimizer", settings.optimizer, settings.optimizer_options),
        micro_batch=context.config.gpu.micro_batch,
        replay=context.replays,
    )
