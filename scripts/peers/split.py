"""Writes the images of a configuration for programs that know nothing of fasthebb: the same split, the same labels.

    python scripts/peers/split.py split.npz experiment=mnist5k/hpca label_fraction=0.05 seed=0

The arrays: images of the training set, uint8 (N, size, size, channels); labels, int64 (N,), -1 where a label is not in
the budget; test_images and test_labels.
"""

import sys

import numpy as np
import torch

from fasthebb_cli.cli.compose import compose_one
from fasthebb_cli.cli.words import read_words
from fasthebb_cli.data.dataset import load_dataset
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.load import load
from fasthebb_cli.stages.images import all_training_images, labelled_images


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("usage: split.py split.npz key=value ...")
    path, *words = sys.argv[1:]
    config = load(compose_one(read_words("config", "verb=train", words)))
    dataset = load_dataset(config.dataset, config.seed)
    train = all_training_images(dataset)
    labels = torch.where(torch.isin(train, labelled_images(dataset, config)), dataset.labels[train], -1)
    arrays = {"images": train, "test_images": dataset.test}
    arrays = {name: dataset.source.read(index).permute(0, 2, 3, 1).numpy() for name, index in arrays.items()}
    np.savez(path, **arrays, labels=labels.numpy(), test_labels=dataset.labels[dataset.test].numpy())


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
