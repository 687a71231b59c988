"""Pre-training by a variational autoencoder: all training images, no label, but a backward pass.

The baseline of the Hebbian rules. The network's layers are the encoder; a decoder that mirrors them reconstructs the
images. Afterwards only the encoder is kept. The loss of an image x with the code's mean m and variance v is

    |x - x'|^2 + 0.5 sum(m^2 + v - log v - 1),    x' = decoder(m + sqrt(v) noise)      (see fasthebb.nets.autoencoder)
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
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import Config
from fasthebb_cli.settings.pretrain import PretrainConfig
from fasthebb_cli.stages.first_step import fit_whitening
from fasthebb_cli.stages.images import all_training_images
from fasthebb_cli.stages.optimizers import learning_rate, optimizer_of
from fasthebb_cli.stages.schedules import set_rate
from fasthebb_cli.stages.task import Batch, Context, Task, results
from fasthebb_cli.stages.totals import Totals, check_loss


def vae(context: Context) -> Task:
    settings, compute, network = context.settings, context.compute, context.network
    assert isinstance(settings, PretrainConfig)
    _check(context.config, settings)
    indices = all_training_images(context.dataset)
    with torch.random.fork_rng(devices=[]):  # every process draws the same decoder
        torch.default_generator.manual_seed(context.seed_for("autoencoder"))
        made = autoencoder_of(context.config, context.dataset, network)
    latents = made.latents
    autoencoder = share_batch_norm(compute.place(made))
    optimizer = _optimizer(settings, autoencoder)
    totals = Totals(compute.device)
    whitening = next((module for module in network.children() if isinstance(module, Whitening)), None)
    if context.begins:
        fit_whitening(context)
    network.train()

    def noise(epoch: int, step: int, total: int) -> Tensor:
        """Standard normal draws (B, latents): this process's part of the draws for all images of a batch."""
        draws = torch.Generator().manual_seed(context.seed_for("noise", epoch, step))
        return torch.randn(total, latents, generator=draws)[processes.part_of(total)].to(compute.device)

    def losses(images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, and the squared error and the divergence, whose sum it is: means over images."""
        with torch.no_grad():
            images = images if whitening is None else whitening(images)
        with compute.autocast():
            reconstruction, mean, log_variance = autoencoder(images, noise)
        error, divergence = loss_terms(images, reconstruction, mean, log_variance)
        return error + divergence, error, divergence

    gradients = Backprop(losses, optimizer, replay=context.replays)

    def step(epoch: int, step: int, batch: Batch) -> None:
        count = len(batch.images)
        set_rate(optimizer, settings.schedule, step, task.steps, epoch, settings.epochs)
        drawn = noise(epoch, step, batch.total)
        loss, error, divergence = gradients(batch.images, drawn, share=count / batch.total)
        optimizer.step()
        totals.add(
            loss=loss * count,
            squared_error=error / batch.images.shape[1:].numel() * count,
            divergence=divergence * count,
            samples=count,
        )

    def end_epoch(epoch: int) -> dict[str, Any]:
        metrics = totals.means()
        check_loss(metrics["loss"], epoch, "pretrain.lr")
        return metrics

    def finish(last: Mapping[str, Any]) -> dict[str, Any]:
        gradients.finish()
        return results(loss=last.get("loss"), samples=len(indices))

    task = Task(
        epochs=settings.epochs,
        samples=len(indices),
        batch_size=settings.batch_size,
        batches=context.shuffled(indices),
        step=step,
        end_epoch=end_epoch,
        finish=finish,
        state={"autoencoder": autoencoder, "optimizer": optimizer, "totals": totals},
        backward=len(indices),
    )
    return task


def _check(config: Config, settings: PretrainConfig) -> None:
    """Raises:
    InputError: a setting that only Hebbian rules have.
    """
    patterns = settings.include != ["*"] or settings.exclude != ["classifier*"]
    if settings.teacher or settings.layer_by_layer or settings.layer_lr or patterns:
        raise InputError(
            "rule=vae trains all layers at once; leave out pretrain.teacher, layer_by_layer, layer_lr, include, exclude"
        )
    if config.gpu.micro_batch is not None:
        raise InputError("gpu.micro_batch: rule=vae sees its batches whole; lower pretrain.batch_size instead")


def _optimizer(settings: PretrainConfig, autoencoder: nn.Module) -> torch.optim.Optimizer:
    make = optimizer_of("pretrain.optimizer", settings.optimizer, settings.optimizer_options)
    try:
        return make(autoencoder.parameters(), lr=learning_rate(settings))
    except (TypeError, ValueError) as error:
        raise InputError(f"pretrain.optimizer or pretrain.optimizer_options: {error}") from error


def autoencoder_of(config: Config, dataset: Dataset, network: nn.Module) -> VariationalAutoencoder:
    """The autoencoder around the network. The decoder's weights are drawn from torch's random generator.

    Raises:
        InputError: an unknown option, or a layer that has no mirror image.
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
