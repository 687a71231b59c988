"""`fasthebb predict MODEL FOLDER`: the most probable class of every image, as a CSV file of path,class,probability."""

import csv
import io
from collections import Counter
from pathlib import Path

from rich.console import Console
from torch import Tensor

from fasthebb_cli.console.formats import FORMULA, cell_text, percent, short
from fasthebb_cli.console.view import View
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.run.directory import remove_begun, replacing
from fasthebb_cli.use.images import find_images
from fasthebb_cli.use.passes import open_model, open_pass, out_path, run_pass, stoppable

SHOWN = 10  # classes that the summary names


def predict(paths: list[Path], settings: dict[str, str], console: Console) -> None:
    """Writes the file, whole or not at all. Its rows have the order of the paths.

    Raises:
        InputError: the model is missing, its classifier was never trained, or no image can be read.
        RunError: the file can't be written, or scores are not finite.
    """
    model, place = paths
    out = out_path(settings["out"], ".csv")
    view = View(console)
    network, card = open_model(model, settings, view)
    if not card.taught or not card.classes:
        raise InputError(
            f"{model} has only been pre-trained, its classifier knows no labels; train it with fasthebb finetune "
            "init_from=MODEL, or read its features with fasthebb features"
        )
    files = find_images(place, view.warn)
    work = open_pass(files, card, settings)
    network = work.compute.place(network)
    names, counts = card.classes, Counter[str]()
    remove_begun(out.parent)
    with stoppable(view), replacing(out) as file:
        file.write(_csv([("path", "class", "probability")]))

        def use(numbers: list[int], images: Tensor) -> None:
            best = network(images).float().softmax(1).max(1)
            classes = [names[k] for k in best.indices.tolist()]
            if not best.values.isfinite().all():
                raise RunError(f"{model}: its scores are not finite; its training has diverged")
            counts.update(classes)
            paths = [f"./{name}" if name.startswith(FORMULA) else name for name in (files[k].name for k in numbers)]
            probabilities = [f"{probability:.6f}" for probability in best.values.tolist()]
            file.write(_csv([*zip(paths, map(cell_text, classes), probabilities, strict=True)]))

        read = run_pass(work, use, view, "predict")
    shown = counts.most_common(SHOWN)
    rest = f"; {len(counts) - SHOWN} more classes" if len(counts) > SHOWN else ""
    view.note(", ".join(f"{short(name)} {count:,} ({percent(count / read)} %)" for name, count in shown) + rest, "none")
    view.note(f"predictions are in {out}", "bold")


def _csv(rows: list[tuple[str, str, str]]) -> bytes:
    """The rows in UTF-8. Bytes of a file name that are no UTF-8 are kept as they are."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")
