"""Fine-tuning by backprop: the classifier alone on frozen features, all layers together, or one after the other.

1. For `classifier_epochs` epochs the classifier learns alone; pre-trained features are frozen.
2. For `epochs` epochs all layers learn. The features' rate has the factor `features_lr` (0: they stay frozen), and a
   layer's the factor `layer_lr` by pattern (0: it stays frozen), so that backprop may train only some layers.
3. The last epoch's weights are kept, or with `select=best` those of the best one on the validation images.

An untrained network learns in all layers at the full rate in both phases, unless `features_lr` is 0.
"""

from collections.abc import Mapping
from typing import Any

from fasthebb_cli.compute.gradients import Backprop, micro_batched
from fasthebb_cli.settings.finetune import FinetuneConfig
from fasthebb_cli.stages.finetune.layers import layers_of, parameter_groups, phases_of
from fasthebb_cli.stages.finetune.loss import losses_of
from fasthebb_cli.stages.first_step import calibrate_batch_norm, fit_whitening
from fasthebb_cli.stages.images import labelled_images
from fasthebb_cli.stages.optimizers import backprop_optimizer
from fasthebb_cli.stages.selection import Selection
from fasthebb_cli.stages.task import Batch, Context, Task, results
from fasthebb_cli.stages.totals import Totals, check_loss


def by_backprop(context: Context) -> Task:
    settings, network, compute = context.settings, context.network, context.compute
    assert isinstance(settings, FinetuneConfig)
    micro_batch = context.config.gpu.micro_batch
    indices = labelled_images(context.dataset, context.config)
    layers = layers_of(network, settings)
    phases = phases_of(settings, len(indices), untrained=context.untrained)
    optimizer = backprop_optimizer(settings, parameter_groups(layers, settings, phases.features_lr))
    totals = Totals(compute.device)
    selection = Selection(context, settings)
    forward = micro_batched(network, micro_batch)
    if context.begins:
        fit_whitening(context)
        if phases.features_lr == 0:
            calibrate_batch_norm(context)

    # micro-batches run forward again within the backward pass, which a CUDA graph can't record
    gradients = Backprop(losses_of(forward, context), optimizer, replay=context.replays and micro_batch is None)

    def step(epoch: int, step: int, batch: Batch) -> None:
        frozen, count = phases.frozen(epoch), len(batch.labels)
        layers.prepare_step(frozen=frozen)
        phases.set_rate(optimizer, settings.schedule, epoch, step)
        loss, hits = gradients(batch.images, batch.labels, share=count / batch.total, key=frozen)
        optimizer.step()
        totals.add(train_loss=loss * count, train_top1=hits, samples=count)

    def end_epoch(epoch: int) -> dict[str, Any]:
        metrics = totals.means()
        check_loss(metrics["train_loss"], epoch, "finetune.lr")
        return metrics | selection.end_epoch(waits=epoch >= phases.alone)

    def finish(last: Mapping[str, Any]) -> dict[str, Any]:
        selection.finish()
        gradients.finish()
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
        state={"optimizer": optimizer, "totals": totals, "selection": selection},
        ended=selection.ended,
        backward=len(indices),
    )
