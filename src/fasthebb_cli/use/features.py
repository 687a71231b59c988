"""`fasthebb features MODEL FOLDER layer=conv3`: a layer's output for every image as an array of float32, N x F.

The array is written row by row, so it needs no memory; numpy.load(path, mmap_mode="r") reads it in the same way.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from fasthebb.nets.networks import features as features_of_child
from fasthebb.readout.network import ClosedForm
from fasthebb_cli.console.formats import size
from fasthebb_cli.console.view import View
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.run.directory import remove_begun, replacing
from fasthebb_cli.use.images import find_images
from fasthebb_cli.use.passes import open_model, open_pass, out_path, run_pass, stoppable, whole_number

COMPONENTS = "components"  # what a classifier in closed form reads: features, projected and whitened by views


def features(paths: list[Path], settings: dict[str, str], console: Console) -> None:
    """Writes OUT.npy and OUT.txt, which has the path of each row in a line; both whole or not at all.

    Raises:
        InputError: the model or the layer is missing, or no image can be read.
        RunError: a file can't be written.
    """
    model, place = paths
    out = out_path(settings["out"], ".npy")
    listing = out_path(settings["out"].removesuffix(".npy"), ".txt")
    view = View(console)
    network, card = open_model(model, settings, view)
    layer, pool = settings["layer"] or last_layer(network), whole_number("pool", settings, 0, 4096)
    read_layer = layer_reader(network, layer)
    files = find_images(place, view.warn)
    for file in files:
        if "\n" in file.name:
            raise InputError(f"{file.name!r}: a path with a line break can't be a line of {listing}; rename the file")
    work = open_pass(files, card, settings)
    network = work.compute.place(network)
    remove_begun(out.parent)
    with stoppable(view), replacing(out) as array, replacing(listing) as names:
        rows = _Rows(array, len(files), out)

        def use(numbers: list[int], images: Tensor) -> None:
            values = flattened(read_layer(images), pool, layer, len(images))
            if not values.isfinite().all():
                raise RunError(f"{model}: features of {layer} are not finite; its training has diverged")
            rows.append(values.cpu().numpy())
            names.write(b"".join(os.fsencode(files[k].name) + b"\n" for k in numbers))

        run_pass(work, use, view, f"features of {layer}")
        rows.finish()
    view.note(f"{layer}: {rows.count:,} x {rows.length:,} numbers are in {out}, the paths in {listing}", "bold")


def last_layer(network: nn.Module) -> str:
    """The child before the child `classifier`; of a classifier in closed form, the components that it reads.

    Raises:
        InputError: the network has no child `classifier`, or nothing before it.
    """
    if isinstance(network, ClosedForm):
        return COMPONENTS
    children = [name for name, _ in network.named_children()]
    if "classifier" not in children[1:]:
        raise InputError(f"layer has no value; the network has: {', '.join(layer_names(network))}")
    return children[children.index("classifier") - 1]


def layer_names(network: nn.Module) -> list[str]:
    """Names to choose from: the children; if there is only one besides whitening and classifier, its children too."""
    if isinstance(network, ClosedForm):
        return [COMPONENTS, *layer_names(network.features)]
    children = dict(network.named_children())
    own = [name for name in children if name not in ("whitening", "classifier")]
    if len(own) == 1:
        own += [f"{own[0]}.{part}" for part, _ in children[own[0]].named_children()]
    return own


def layer_reader(network: nn.Module, layer: str, choices: Sequence[str] | None = None) -> Callable[[Tensor], Tensor]:
    """A function from images (B, C, S, S) to the layer's output (B, ...). In a sequence, it computes no later child.

    Args:
        choices: names for the message about a layer that is missing; None: those of the network.

    Raises:
        InputError: the layer is missing. The function raises it if the layer does not give one tensor.
    """
    if isinstance(network, ClosedForm):
        if layer == COMPONENTS:
            return network.components
        return layer_reader(network.features, layer, layer_names(network))
    if isinstance(network, nn.Sequential) and layer in dict(network.named_children()):
        return partial(features_of_child, network, layer=layer)
    if not layer or layer not in dict(network.named_modules()):
        names = ", ".join(choices or layer_names(network))
        raise InputError(f"layer={layer}: no such layer; the network has: {names} (or a part of one, as conv1.0)")
    caught: list[Tensor] = []

    def keep(_: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            caught.append(output.clone())  # the next module may change it in place

    network.get_submodule(layer).register_forward_hook(keep)

    def read(images: Tensor) -> Tensor:
        caught.clear()
        network(images)
        if len(caught) != 1:
            raise InputError(f"layer={layer}: the network takes {len(caught)} tensors from it, not one; choose another")
        return caught[0]

    return read


def flattened(output: Tensor, pool: int, layer: str, images: int) -> Tensor:
    """The output as float32 (B, F). Maps (B, K, H, W) are averaged to at most `pool` x `pool` first, unless it is 0.

    Raises:
        InputError: the output has not one row or map per image.
    """
    if output.dim() < 2 or len(output) != images:
        raise InputError(f"layer={layer}: its output of shape {list(output.shape)} is not one row an image")
    if pool and output.dim() == 4:
        output = adaptive_avg_pool2d(output, (min(pool, output.shape[2]), min(pool, output.shape[3])))
    return output.float().flatten(1)


class _Rows:
    """A .npy file that grows by rows. A full disk would kill a process that writes to a memory map.

    Args:
        most: the largest number of rows.
    """

    def __init__(self, file: IO[bytes], most: int, path: Path) -> None:
        self.file, self.most, self.path = file, most, path
        self.count = self.length = 0

    def append(self, rows: "np.ndarray[Any, np.dtype[np.float32]]") -> None:
        if not self.count:
            self.length = rows.shape[1]
            self._check_space()
            self._header(self.most)
        self.file.write(np.ascontiguousarray(rows, "<f4").data)
        self.count += len(rows)

    def finish(self) -> None:
        """Corrects the number of rows in the header, which is padded and so has room for it."""
        self.file.seek(0)
        self._header(self.count)

    def _header(self, rows: int) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, self.length)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def _check_space(self) -> None:
        needed, free = 4 * self.most * self.length, shutil.disk_usage(self.path.absolute().parent).free
        if needed > free:
            raise RunError(
                f"{self.path} needs {size(needed)} and {size(free)} are free; lower pool, choose a smaller layer or "
                "another out="
            )
