"""Opens the data set of a run. The first process alone downloads; a user is told before a step that takes long."""

from dataclasses import replace

from fasthebb_cli.compute import processes
from fasthebb_cli.console.formats import counted
from fasthebb_cli.console.view import View
from fasthebb_cli.data.contents import telling
from fasthebb_cli.data.dataset import Dataset, collection_of, load_dataset
from fasthebb_cli.settings.config import DatasetConfig


def open_dataset(config: DatasetConfig, seed: int, view: View) -> Dataset:
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
        dataset = load_dataset(config, seed)
    view.left_out(dataset.left_out)
    return dataset
