"""Pre-training by a variational autoencoder: every training image, no label, but a backward pass.

The baseline beside the Hebbian rules: the network's layers learn to encode images so that a mirrored decoder can paint
them again. The loss is the squared error plus the code's divergence (see `fasthebb.nets.autoencoder`). Only the
encoder is kept.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fasthebb.nets.autoencoder import VariationalAutoencoder, loss_terms
from fasthebb.nets.whitening import Whitening
from fasthebb_cli.compute import processes
from fasthebb_cli.compute.batch_norm import share_batch_norm
from fasthebb_cli.compute.gradients import Backprop
from fasthebb_cli.data.dataset import Dataset
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.settings.config import Config
from fasthebb_cli.settings.pretrain import PretrainConfig
from fasthebb_cli.stages.first_step import fit_whitening
from fasthebb_cli.stages.optimizers import learning_rate, optimizer_of
from fasthebb_cli.stages.schedules import set_rate
from fasthebb_cli.stages.task import Batch, Context, Task, Totals


def vae(context: Context) -> Task:
    settings, compute, network = context.settings, context.compute, context.network
    assert isinstance(settings, PretrainConfig)
    chosen = settings.include != ["*"] or settings.exclude != ["classifier*"]
    if settings.teacher or settings.layer_by_layer or settings.layer_lr or chosen:
        raise InputError(
            "rule=vae trains all layers at once; leave out pretrain.teacher, layer_by_layer, layer_lr, include, exclude"
        )
    if context.config.gpu.micro_batch is not None:
        raise InputError("gpu.micro_batch: rule=vae sees its batches whole; lower pretrain.batch_size instead")
    dataset = context.dataset
    indices = torch.cat([dataset.train, dataset.unlabelled])
    with torch.random.fork_rng(devices=[]):  # every process begins with the same
        torch.default_generator.manual_seed(context.seed_for("autoencoder"))
        made = autoencoder_of(context.config, dataset, network)
    latents = made.latents
    autoencoder = share_batch_norm(compute.place(made))
    optimizer_for = optimizer_of("pretrain.optimizer", settings.optimizer, settings.optimizer_options)
    try:
        optimizer = optimizer_for(autoencoder.parameters(), lr=learning_rate(settings))
    except (TypeError, ValueError) as error:
        raise InputError(f"pretrain.optimizer or pretrain.optimizer_options: {error}") from error
    totals = Totals(compute.device)
    whitening = next((module for module in network.children() if isinstance(module, Whitening)), None)
    if context.begins:
        fit_whitening(context)
    network.train()

    def noise(epoch: int, step: int, total: int) -> Tensor:
        """This process's part of what is drawn for the whole batch, whatever the number of processes."""
        draws = torch.Generator().manual_seed(context.seed_for("noise", epoch, step))
        return torch.randn(total, latents, generator=draws)[processes.part_of(total)].to(compute.device)

    def losses(images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means over images of the loss, and of the squared error and the divergence that it is the sum of."""
        with torch.no_grad():
            images = images if whitening is None else whitening(images)
        with compute.autocast():
            reconstruction, mean, log_variance = autoencoder(images, noise)
        error, divergence = loss_terms(images, reconstruction, mean, log_variance)
        return error + divergence, error, divergence

    backprop = Backprop(losses, optimizer, replay=context.replays)

    def step(epoch: int, step: int, batch: Batch) -> None:
        set_rate(optimizer, settings.schedule, step, task.steps, epoch, settings.epochs)
        count = len(batch.images)
        drawn = noise(epoch, step, batch.total)
        loss, error, divergence = backprop(batch.images, drawn, share=count / batch.total)
        optimizer.step()
        totals.add(
            loss=loss * count,
            squared_error=error / batch.images.shape[1:].numel() * count,
            divergence=divergence * count,
            samples=count,
        )

    def end_epoch(epoch: int) -> dict[str, Any]:
        metrics = totals.means()
        if not torch.isfinite(torch.tensor(metrics["loss"])):
            raise RunError(f"the loss is {metrics['loss']} in epoch {epoch + 1}; lower pretrain.lr")
        return metrics

    def finish(last: Mapping[str, Any]) -> dict[str, Any]:
        backprop.finish()
        results = {"top1": None, "top5": None, "loss": last.get("loss")}
        return results | {"samples": len(indices), "labels_train": 0, "labels_validation": 0}

    task = Task(
        epochs=settings.epochs,
        samples=len(indices),
        batch_size=settings.batch_size,
        batches=context.shuffled(indices),
        step=step,
        end_epoch=end_epoch,
        finish=finish,
        state={"autoencoder": autoencoder, "optimizer": optimizer, "totals": totals},
    )
    return task


def autoencoder_of(config: Config, dataset: Dataset, network: nn.Module) -> VariationalAutoencoder:
    """The autoencoder around the network, whose other layers are drawn by torch's generator.

    Raises:
        InputError: an unknown option, or a layer that can't be mirrored.
    """
    source, options = dataset.source, config.rule.options
    unknown = [name for name in options if name != "latents"]
    if unknown:
        raise InputError(f"rule.options.{unknown[0]}: rule=vae accepts: latents")
    try:
        return VariationalAutoencoder(
            network, channels=source.channels, size=source.size, latents=options.get("latents", 256)
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"rule=vae: {error}") from error
