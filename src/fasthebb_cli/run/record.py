"""Writes the record of a running stage: metrics.jsonl, TensorBoard events, log.txt, and the model with its filters.

A checkpoint holds the records of all epochs. A resumed stage writes metrics.jsonl and the events anew from it, so both
have each epoch exactly once, whenever the stage was killed.
"""

import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from fasthebb.card import ModelCard
from fasthebb.model_file import model_bytes
from fasthebb_cli.run.directory import METRICS_FILE, write_atomically, write_text

GAP = 2  # pixels of white around a filter


class Record:
    """The running record of one stage.

    Args:
        directory: of the stage; None: nothing is written.
        epochs: records of the epochs that are done already.
    """

    def __init__(self, directory: Path | None, epochs: list[dict[str, Any]]) -> None:
        self.directory = directory
        self._events: SummaryWriter | None = None
        if directory is None:
            return
        for old in directory.glob("events.out.tfevents.*"):
            old.unlink()
        write_text(directory / METRICS_FILE, "".join(json.dumps(epoch) + "\n" for epoch in epochs))
        self._events = SummaryWriter(str(directory), flush_secs=10)
        for epoch in epochs:
            self._show(epoch)

    def add(self, epoch: dict[str, Any]) -> None:
        """One finished epoch; it must have a key `epoch`, counted from 1."""
        if self.directory is None:
            return
        with (self.directory / METRICS_FILE).open("a") as file:
            file.write(json.dumps(epoch) + "\n")
        self._show(epoch)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()

    def _show(self, epoch: dict[str, Any]) -> None:
        assert self._events is not None
        for key, value in _scalars(epoch):
            self._events.add_scalar(key, value, epoch["epoch"])


def open_log(directory: Path) -> logging.Logger:
    """A logger that appends to the stage's log.txt, with the time before each line."""
    logger = logging.getLogger(f"fasthebb.{directory.name}")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
    path = directory / "log.txt"
    if path.is_symlink() or path.is_fifo():  # it leads elsewhere, or nowhere
        path.unlink()
    handler = logging.FileHandler(path, delay=True)
    formatter = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    return logger


def save_filters(path: Path, network: nn.Module) -> None:
    """The first convolution's filters as a PNG: one tile a unit, in the units' order, each scaled to its own range."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        return
    tiles = first.weight.detach().float().cpu()
    if tiles.shape[1] != 3:
        tiles = tiles.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    low, high = tiles.amin((1, 2, 3), keepdim=True), tiles.amax((1, 2, 3), keepdim=True)
    tiles = (tiles - low) / (high - low).clamp_min(1e-12)
    tiles = F.pad(F.interpolate(tiles, scale_factor=max(1, 40 // tiles.shape[-1])), (GAP,) * 4, value=1.0)
    columns = math.isqrt(3 * len(tiles) // 2 - 1) + 1
    tiles = torch.cat([tiles, tiles.new_ones(-len(tiles) % columns, *tiles.shape[1:])])
    rows = [torch.cat(list(row), dim=2) for row in tiles.split(columns)]
    pixels = (torch.cat(rows, dim=1) * 255).round().to(torch.uint8)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    write_atomically(path, lambda file: image.save(file, format="PNG"))


def save_model(path: Path, network: nn.Module, card: ModelCard) -> None:
    """The network's weights and card as one safetensors file."""
    data = model_bytes(network, card)
    write_atomically(path, lambda file: file.write(data))


def _scalars(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "epoch":
            yield f"{prefix}{key}", float(value)
