"""Keeps full precision where autocast would lose too much."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """No autocast inside this context, on the device of x. On the meta device, torch has no autocast to turn off."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
