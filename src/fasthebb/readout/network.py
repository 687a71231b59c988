"""A network whose classifier is in closed form: images (B, C, S, S) -> scores (B, classes) with a calibrated softmax.

Everything that is fitted is a buffer, empty until then: a model file holds it, and its shape follows from the file.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fasthebb.readout.features import Features
from fasthebb.readout.kernel import kernel, unit_rows
from fasthebb.readout.views import mirrored

DIMENSIONS = {"mean": 1, "map": 2, "linear": 2, "weight": 2, "rows": 2, "sharpness": 0, "gain": 0}  # of its buffers
KEPT = {"kept": 2, "kept_of": 1}  # those that it may have besides


class ClosedForm(nn.Module):
    """Features z = (x - mean) map, then a linear classifier, the labelled rows of a kernel, or the sum of both.

    Args:
        features: images -> x (B, D).
        mirror: an image's score is the mean of its own and its mirror image's.

    A network that has components, and no classifier yet, may keep those of all training images for one: `keep`.
    """

    mean: Tensor  # (D,)
    map: Tensor  # (D, K)
    linear: Tensor  # (K, C)
    weight: Tensor  # (M, C), of the rows
    rows: Tensor  # (M, K), of length 1: labelled images, or landmarks; empty: the classifier is linear
    sharpness: Tensor  # of the kernel
    gain: Tensor  # factor on the scores that calibrates their softmax

    def __init__(self, features: Features, *, mirror: bool) -> None:
        super().__init__()
        self.features, self.mirror = features, mirror
        for name in DIMENSIONS:
            self.register_buffer(name, torch.empty(0))

    def components(self, images: Tensor) -> Tensor:
        """z (B, K)."""
        return self.components_of(self.features(images))

    def components_of(self, features_BD: Tensor) -> Tensor:
        z: Tensor = (features_BD - self.mean) @ self.map
        return z

    def keep(self, z_NK: Tensor, of: Tensor) -> None:
        """Keeps the components of N images; `of` says which images they are, uint8 (any length,)."""
        for name, value in zip(KEPT, (z_NK, of), strict=True):
            self.register_buffer(name, value)

    def take_kept(self, of: Tensor) -> Tensor | None:
        """What it keeps of these images, (N, K), and no longer keeps; None: nothing, or of others."""
        z_NK, found = (self._buffers.pop(name, None) for name in KEPT)
        if z_NK is None or found is None or (z_NK.dtype, found.dtype) != (torch.float32, of.dtype):
            return None
        return z_NK if torch.equal(found.cpu(), of) else None

    def inputs(self, z_BK: Tensor) -> Tensor:
        """What a classifier weighs: z at length 1 (B, K), or its kernel with the rows (B, M)."""
        unit_BK = unit_rows(z_BK)
        return kernel(unit_BK, self.rows, float(self.sharpness)) if self.rows.numel() else unit_BK

    def scores_of(self, z_BK: Tensor) -> Tensor:
        scores: Tensor = unit_rows(z_BK) @ self.linear
        return scores + self.inputs(z_BK) @ self.weight if self.rows.numel() else scores

    def forward(self, images: Tensor) -> Tensor:
        scores = self.scores_of(self.components(images))
        if self.mirror:
            scores = (scores + self.scores_of(self.components(mirrored(images)))) / 2
        return scores * self.gain

    def make_room(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Gives each buffer the shape that it has in a state."""
        for name in KEPT:
            if prefix + name in state:
                self.register_buffer(name, torch.empty_like(state[prefix + name], device=self.mean.device))
        for name in DIMENSIONS:
            if prefix + name in state:
                setattr(self, name, getattr(self, name).new_empty(state[prefix + name].shape))

    def make_blank(self, features: int, components: int, classes: int, device: torch.device) -> None:
        """A linear classifier of zeros."""
        shapes = {"mean": (features,), "map": (features, components), "linear": (components, classes)}
        shapes |= {"rows": (0, components), "weight": (0, classes), "sharpness": (), "gain": ()}
        for name, shape in shapes.items():
            setattr(self, name, torch.zeros(shape, device=device))

    @torch.no_grad()
    def check(self, image: Tensor, classes: int | None) -> None:
        """Tries one image (1, C, S, S), in evaluation mode.

        Args:
            classes: None: any number will do, as labels have not taught it yet.

        Raises:
            ValueError: the buffers do not fit each other, the features or the number of classes.
        """
        for name, value in self.named_buffers(recurse=False):
            dimensions = (DIMENSIONS | KEPT)[name]
            if value.numel() and value.dim() != dimensions:
                raise ValueError(f"its {name} has {value.dim()} dimensions, not {dimensions}")
            if not value.isfinite().all() or (
                name in ("gain", "sharpness") and value.numel() and float(value.min()) < 0
            ):
                raise ValueError(f"its {name} is not finite, or below 0")
        if len(self.weight) != len(self.rows):
            raise ValueError(f"its readout has {len(self.rows)} rows and weights of {len(self.weight)}")
        training = self.training
        try:
            found = tuple(self.eval()(image).shape)
        except RuntimeError as error:
            raise ValueError(f"its readout does not fit together ({str(error).splitlines()[0]})") from error
        finally:
            self.train(training)
        if found != (1, found[-1] if classes is None else classes):
            raise ValueError(f"its readout gives scores of shape {found}, not {(1, classes)}")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        self.make_room(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
