"""Measures what every layer knows: heads that learn from its frozen features.

1. The labelled training images and those of the split run through the network once, in evaluation mode. Every layer's
   output, averaged to a small grid, is kept in memory.
2. Each head (see `heads`) learns from the labelled images' features and is scored on those of the split. The first
   process does this alone.

The network is not changed. A probe that is killed starts over: a checkpoint with its features would have gigabytes.
"""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import chain
from typing import Any

import torch

from fasthebb_cli.compute import processes
from fasthebb_cli.compute.signals import stops_raise
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.probe import ProbeConfig
from fasthebb_cli.stages.features import Features, probed_layers
from fasthebb_cli.stages.first_step import calibrate_batch_norm, fit_whitening
from fasthebb_cli.stages.heads import HEADS, NEEDS, Samples, linear_epochs
from fasthebb_cli.stages.images import images_of_split, labelled_images
from fasthebb_cli.stages.task import Batch, Context, Task, results


def probe(context: Context) -> Task:
    settings, dataset, network = context.settings, context.dataset, context.network
    assert isinstance(settings, ProbeConfig)
    _check_packages(settings)
    train, test = labelled_images(dataset, context.config), images_of_split(dataset, settings, context.config)
    if context.begins:
        fit_whitening(context)
        calibrate_batch_norm(context)
    network.eval()
    features = Features(probed_layers(network, settings.layers), settings.pool)
    source = dataset.source
    blank = torch.zeros(1, source.channels, source.size, source.size, device=context.compute.device)
    features.check(network, blank, len(train) + len(test), settings.layers or [])
    epochs_of_heads = linear_epochs(len(train), settings) if "linear" in settings.methods else 0

    def batches(epoch: int, start: int) -> Iterator[Batch]:
        return chain.from_iterable(context.batches(indices, settings.batch_size) for indices in (train, test))

    @torch.no_grad()
    def step(epoch: int, step: int, batch: Batch) -> None:
        with context.compute.autocast():
            features.collect(network, batch)

    def validate(epoch: int) -> Iterator[None]:
        features.gather()
        yield

    def end_epoch(epoch: int) -> dict[str, Any]:
        return {"probes": processes.from_first(score)}

    @stops_raise()
    def score() -> dict[str, dict[str, float]]:
        labels_train, labels_test = torch.cat(features.labels).split([len(train), len(test)])
        scores: dict[str, dict[str, float]] = {}
        for name in features.layers:
            train_NF, test_MF = features.take(name).split([len(train), len(test)])
            samples = Samples(train_NF, labels_train, test_MF, labels_test, len(dataset.classes))
            scores[name] = {}
            for method in settings.methods:
                scores[name] |= HEADS[method](samples, settings, context.compute.device)
        return scores

    def finish(last: Mapping[str, Any]) -> dict[str, Any]:
        return results(
            samples=len(test),
            labels_train=len(train),
            labels_validation=len(test) if settings.split == "validation" else 0,
            split=settings.split,
            layers=last["probes"],
        )

    return Task(
        epochs=1,
        samples=len(train) + len(test),
        batch_size=settings.batch_size,
        batches=batches,
        step=step,
        validate=validate,
        end_epoch=end_epoch,
        finish=finish,
        resumable=False,
        backward=len(train) * epochs_of_heads * len(features.layers),
    )


def _check_packages(settings: ProbeConfig) -> None:
    """Raises:
    InputError: a head needs a package that is not installed.
    """
    missing = sorted({NEEDS[name] for name in settings.methods if name in NEEDS and find_spec(NEEDS[name]) is None})
    if missing:
        raise InputError(f'probe.methods needs {", ".join(missing)}: pip install "fasthebb[probe]"')
