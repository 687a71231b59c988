"""Opens the data set of a run. The first process alone downloads; a user is told before a step that takes long."""

from dataclasses import replace

import numpy as np

from fasthebb_cli.compute import processes
from fasthebb_cli.console.formats import counted, short
from fasthebb_cli.console.view import View
from fasthebb_cli.data.contents import telling
from fasthebb_cli.data.dataset import Dataset, collection_of, load_dataset
from fasthebb_cli.settings.config import DatasetConfig

LISTED = 10  # classes that are named
LIST = "label_subset lists"


def open_dataset(config: DatasetConfig, seed: int, view: View, labelled: str | None = None) -> Dataset:
    """As `load_dataset`, in every process; tells the user which images are left out.

    Raises:
        InputError, RunError: as `load_dataset`.
    """
    if config.on_bad_image == "skip":
        listed = replace(config, in_memory=False, on_bad_image="error")  # downloads, but decodes nothing
        count = processes.from_first(lambda: len(collection_of(listed).files or ()))
        if count:
            view.note(f"dataset.on_bad_image=skip: decodes {counted(count, 'image')} to find those that can't be read")
    elif config.download:
        processes.from_first(lambda: load_dataset(config, seed) and None)
    with telling(view.note):
        dataset = load_dataset(config, seed, labelled)
    view.left_out(dataset.left_out)
    for line in (*dataset.notes, *copies(dataset), *untaught(dataset), *alike(dataset)):
        view.warn(line)
    return dataset


def untaught(dataset: Dataset) -> list[str]:
    """A line on classes of which no image is among those whose labels may be read."""
    train, what = (dataset.train, "the training images have") if dataset.listed is None else (dataset.listed, LIST)
    if not len(dataset.train):
        return []
    taught = set(dataset.labels[train].unique().tolist())
    absent = [name for label, name in enumerate(dataset.classes) if label not in taught]
    if not absent:
        return []
    more = f" and {len(absent) - LISTED:,} more" if len(absent) > LISTED else ""
    classes = counted(len(absent), "class", "classes")
    return [f"{what} no image of {classes}: {', '.join(map(short, absent[:LISTED]))}{more}"]


def alike(dataset: Dataset) -> list[str]:
    """A line on classes that may be meant to be one: their names differ in case or in spaces alone."""
    seen: dict[str, str] = {}
    pairs = []
    for name in dataset.classes:
        first = seen.setdefault("".join(name.split()).casefold(), name)
        if first != name:
            pairs.append(f"{short(first)!r} and {short(name)!r}")
    if not pairs:
        return []
    more = f", and {len(pairs) - LISTED:,} more pairs" if len(pairs) > LISTED else ""
    return [f"taken as different classes: {', '.join(pairs[:LISTED])}{more}"]


def copies(dataset: Dataset) -> list[str]:
    """Lines on measured images that are also learnt from: files of the same content in two splits."""
    if dataset.contents is None:
        return []
    known_N = dataset.contents[:, :8].copy().view("<u8")[:, 0]
    splits = {"training": dataset.train, "unlabelled": dataset.unlabelled, "validation": dataset.validation}
    lines = []
    for name, measured in (("test", dataset.test), ("validation", dataset.validation)):
        for other, indices in splits.items():
            if other == name:
                continue
            found = known_N[measured.numpy()]
            count = int((np.isin(found, known_N[indices.numpy()]) & (found != 0)).sum())  # 0: it could not be read
            if count:
                lines.append(
                    f"{counted(count, f'{name} image')} of {len(measured):,} have the same content as {other} images: "
                    "what is measured on them tells nothing; remove the copies"
                )
    return lines
