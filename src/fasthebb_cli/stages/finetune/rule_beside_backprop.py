"""Fine-tuning by the rule beside backprop: in the same steps the layers named by `by_rule` learn by the rule, and all
others by backprop.

1. Each step runs the batch through the network once. Forward hooks collect what the rule needs; the backward pass
   crosses the rule's layers, which hand the gradient on but get none themselves.
2. Then both update their layers: backprop at finetune.lr, the rule at rule.lr, both times `features_lr` and `layer_lr`.
3. Phases and the choice of the epoch are those of `backprop`. While the features are frozen the rule is paused too.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from fasthebb.learner import HebbianLearner
from fasthebb.patterns import last_match, matches
from fasthebb_cli.compute.gradients import Backprop
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import Config
from fasthebb_cli.settings.finetune import FinetuneConfig
from fasthebb_cli.settings.kind import StageSettings
from fasthebb_cli.stages.finetune.layers import layers_of, parameter_groups, phases_of
from fasthebb_cli.stages.finetune.loss import losses_of
from fasthebb_cli.stages.first_step import fit_whitening
from fasthebb_cli.stages.images import labelled_images
from fasthebb_cli.stages.optimizers import backprop_optimizer, rule_optimizer
from fasthebb_cli.stages.rule import layer_metrics, layer_warnings, learner_of, rule_setting, untrainable_notes
from fasthebb_cli.stages.selection import Selection
from fasthebb_cli.stages.task import Batch, Context, Task, results
from fasthebb_cli.stages.totals import Totals, check_loss

RATES = "rule.lr or finetune.layer_lr"  # what to lower when a layer diverges


def by_rule_beside_backprop(context: Context) -> Task:
    settings, network, compute = context.settings, context.network, context.compute
    assert isinstance(settings, FinetuneConfig)
    indices = labelled_images(context.dataset, context.config)
    layers = layers_of(network, settings)
    phases = phases_of(settings, len(indices), untrained=context.untrained)
    optimizer = backprop_optimizer(settings, parameter_groups(layers, settings, phases.features_lr))
    learner = _learner(context, settings, phases.features_lr)
    totals = Totals(compute.device)
    selection = Selection(context, settings)
    if context.begins:
        fit_whitening(context)

    # not replayed, since the learner's hooks belong to no graph
    gradients = Backprop(losses_of(network, context), optimizer, replay=False)

    def step(epoch: int, step: int, batch: Batch) -> None:
        frozen, count = phases.frozen(epoch), len(batch.labels)
        layers.prepare_step(frozen=frozen)
        for layer in learner.layers:
            layer.module.requires_grad_(False)  # it learns by the rule
        phases.set_rate(optimizer, settings.schedule, epoch, step)
        phases.set_rate(learner.optimizer, settings.schedule, epoch, step)
        with learning(learner, learns=not frozen):
            loss, hits = gradients(batch.images, batch.labels, share=count / batch.total)
        optimizer.step()
        learner.step()
        totals.add(train_loss=loss * count, train_top1=hits, samples=count)

    def end_epoch(epoch: int) -> dict[str, Any]:
        metrics: dict[str, Any] = totals.means()
        check_loss(metrics["train_loss"], epoch, "finetune.lr")
        metrics |= selection.end_epoch(waits=epoch >= phases.alone)
        return metrics if phases.frozen(epoch) else metrics | {"by_rule": layer_metrics(learner, RATES)}

    def finish(last: Mapping[str, Any]) -> dict[str, Any]:
        selection.finish()
        learner.finish()
        network.requires_grad_(True)
        samples = len(indices)
        return results(loss=last.get("train_loss"), samples=samples, labels_train=samples, **selection.results())

    return Task(
        epochs=phases.epochs,
        samples=len(indices),
        batch_size=settings.batch_size,
        batches=context.shuffled(indices),
        step=step,
        validate=selection.validate,
        end_epoch=end_epoch,
        finish=finish,
        state={"optimizer": optimizer, "learner": learner, "totals": totals, "selection": selection},
        warnings=lambda metrics: layer_warnings(metrics.get("by_rule", {}), RATES),
        ended=selection.ended,
        notes=untrainable_notes(learner),
        backward=len(indices),
    )


@contextmanager
def learning(learner: HebbianLearner, *, learns: bool) -> Iterator[None]:
    """Only the forward passes in here teach the learner, if any: validation images teach nothing."""
    learner.paused = not learns
    try:
        yield
    finally:
        learner.paused = True


def _learner(context: Context, settings: FinetuneConfig, features_lr: float) -> HebbianLearner:
    """The rule on the layers that `by_rule` names, paused: see `learning`.

    Raises:
        InputError: as `check_by_rule`.
    """
    rule = context.config.rule
    factors = check_by_rule(context.config, settings, context.network)
    assert rule.lr is not None
    learner = learner_of(
        context,
        "finetune.by_rule",
        lr=rule.lr * features_lr,
        include=settings.by_rule,
        exclude=["classifier"],
        layer_lr={name: last_match(name, rule.layer_lr, 1.0) * factors[name] for name in factors},
        optimizer=rule_optimizer("rule.optimizer", rule.optimizer, {}),
    )
    learner.paused = True
    return learner


def check_by_rule(config: Config, settings: StageSettings, network: nn.Module) -> dict[str, float]:
    """Each layer's factor on the learning rate, from finetune.layer_lr.

    Raises:
        InputError: `by_rule` names no layer of the network, or one that is frozen; the rule has no learning rate; or
            batches are to be split.
    """
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    factors = {name: last_match(name, settings.layer_lr, 1.0) for name in names}
    rule_setting(config.rule)  # first: for rule=none its message is the better one
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
