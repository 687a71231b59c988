"""Whether a collection that a user's own function made can be used."""

import torch
from torch import Tensor

from fasthebb_cli.data.collection import PARTS, Collection


def check_collection(collection: Collection) -> None:
    """Checks a collection that somebody's own function made.

    Raises:
        ValueError: labels, classes or parts are of another type or shape, or lead to images or classes that there are
            not, or an image is in two parts.
    """
    source, labels, classes = collection.source, collection.labels, collection.classes
    if not (hasattr(source, "read") and hasattr(source, "size") and hasattr(source, "channels")):
        raise ValueError(f"its source must have read, size and channels, not be {type(source).__name__}")
    if not all(isinstance(name, str) for name in classes) or len(set(classes)) < len(classes):
        raise ValueError("its classes must be different names")
    _check_integers("labels", labels, -1, len(classes) - 1)
    if len(labels) != len(source):
        raise ValueError(f"it has {len(source):,} images and {len(labels):,} labels")
    parts = {name: chosen for name in PARTS if (chosen := getattr(collection, name)) is not None}
    for name, chosen in parts.items():
        _check_integers(name, chosen, 0, len(labels) - 1)
        if name != "unlabelled" and classes and len(chosen) and int(labels[chosen.long()].min()) < 0:
            raise ValueError(f"its {name} has images without a label; name them in unlabelled")
    if not len(collection.train):
        raise ValueError("its train is empty")
    first, shape = source.read(collection.train[:1].long()), (1, source.channels, source.size, source.size)
    if not isinstance(first, Tensor) or first.dtype != torch.uint8 or tuple(first.shape) != shape:
        found = f"{first.dtype} {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
        raise ValueError(f"its source must give uint8 {shape} for one image, not {found}")
    every = torch.cat([chosen.long() for chosen in parts.values()])
    if len(every.unique()) < len(every):
        raise ValueError(f"an image occurs twice in its {', '.join(parts)}")


def _check_integers(name: str, values: object, low: int, high: int) -> None:
    if not isinstance(values, Tensor) or values.dim() != 1 or values.dtype not in (torch.int64, torch.int32):
        what = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"its {name} must be a tensor of int64 (N,), not {what}")
    if len(values) and not low <= int(values.min()) <= int(values.max()) <= high:
        raise ValueError(f"its {name} must be in {low} to {high}, not in {int(values.min())} to {int(values.max())}")
