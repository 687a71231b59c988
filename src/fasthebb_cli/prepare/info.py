"""`fasthebb data info`: the content of a data set, in numbers and as a picture of sample images."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from fasthebb_cli.console.formats import counted, printable
from fasthebb_cli.console.tables import plain_table
from fasthebb_cli.console.view import View
from fasthebb_cli.data.dataset import Dataset, mean_and_std, statistics_of
from fasthebb_cli.errors import InputError
from fasthebb_cli.run.dataset import open_dataset
from fasthebb_cli.run.directory import write_atomically
from fasthebb_cli.settings.tools import DataConfig

ROWS, COLUMNS = 20, 10  # of the picture; a row shows a class
TILE, MARGIN, CAPTION = 96, 4, 14  # pixels: largest side of an image, space between images, height of a line of text


def tell(config: DataConfig, view: View) -> None:
    """Prints the images per class and split, mean and deviation, and writes the picture.

    Raises:
        InputError: `out` names no .png file; and as `open_dataset`.
    """
    path = Path(config.out or f"{config.dataset.name.replace(':', '.')}.png").expanduser()
    if path.suffix.lower() != ".png" or path.is_dir():
        raise InputError(f"out={path} must be the name of a picture that ends in .png, and no folder")
    dataset = open_dataset(config.dataset, config.seed, view)
    view.console.print(counts_table(dataset))
    if len(dataset.train):
        mean, std = mean_and_std(dataset)
        read = statistics_of(dataset)
        told = "all training images" if read == "all" else read.replace(" ", " training ")
        view.note(f"mean {_numbers(mean)}, deviation {_numbers(std)} of {told}, on a scale of 0 to 1", "none")
    picture = contact_sheet(dataset)
    write_atomically(path, lambda file: picture.save(file, "PNG"))
    shown = f" of {counted(min(ROWS, len(dataset.classes)), 'class', 'classes')}" if dataset.classes else ""
    view.note(f"samples{shown} in {path}", "none")


def counts_table(dataset: Dataset) -> Table:
    """The number of images of each class in each split, and the sums."""
    parts = {"training": dataset.train, "validation": dataset.validation, "test": dataset.test}
    if len(dataset.unlabelled):
        parts["unlabelled"] = dataset.unlabelled
    title = f"{dataset.name}, {dataset.source.size} x {dataset.source.size}"
    table = plain_table(title=title, title_justify="left", title_style="bold")
    table.add_column("class")
    for part in parts:
        table.add_column(part, justify="right")
    counts = [
        torch.bincount(dataset.labels[chosen] + 1, minlength=len(dataset.classes) + 1) for chosen in parts.values()
    ]
    for k, name in enumerate(dataset.classes, 1):
        table.add_row(escape(printable(name)), *(f"{int(count[k]):,}" for count in counts))
    if any(int(count[0]) for count in counts):
        table.add_row("(no label)", *(f"{int(count[0]):,}" for count in counts))
    table.add_row("all", *(f"{len(chosen):,}" for chosen in parts.values()), style="bold")
    return table


def contact_sheet(dataset: Dataset) -> Image.Image:
    """The first training images of up to 20 classes, a row per class below its name; without classes, just rows."""
    labels = dataset.labels[dataset.train]
    rows: list[tuple[str, Tensor]] = []
    for k, name in enumerate(dataset.classes[:ROWS]):
        rows.append((name, dataset.train[labels == k][:COLUMNS]))
    if not rows:
        rows = [("", chosen) for chosen in torch.split(dataset.train[: ROWS * COLUMNS], COLUMNS)]
    side = min(TILE, max(32, dataset.source.size))
    step, height = side + MARGIN, side + MARGIN + CAPTION
    sheet = Image.new("RGB", (MARGIN + COLUMNS * step, len(rows) * height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, chosen) in enumerate(rows):
        draw.text((MARGIN, row * height), printable(name), fill="black")
        if not len(chosen):
            continue
        for column, pixels in enumerate(dataset.source.read(chosen).cpu()):
            tile = to_pil_image(pixels if len(pixels) == 3 else pixels[:1]).resize((side, side))
            sheet.paste(tile, (MARGIN + column * step, row * height + CAPTION))
    return sheet


def _numbers(values: Tensor) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values.tolist()) + ")"
