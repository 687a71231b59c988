"""Splits and label subsets, chosen by a seed. Knows labels and numbers only.

Both are consecutive pieces of a random order, so a smaller subset is contained in a larger one. In a stratified order
the first m samples hold m c / N samples of a class of c, rounded up or down.
"""

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from math import ceil

import numpy as np
import torch
from torch import Tensor

from fasthebb_cli.compute.seeds import derived_seed
from fasthebb_cli.errors import InputError


def label_subset(
    labels_of_train: Tensor,
    fraction: float,
    seed: int,
    *,
    kind: str,
    per_class: int | None = None,
    classes: Sequence[str] = (),
) -> Tensor:
    """Positions of the round(fraction * N) samples whose labels may be read, sorted.

    With the same seed and kind, the subset of a smaller fraction is contained in that of a larger one.

    Args:
        labels_of_train: int64 (N,).
        fraction: in (0, 1].
        kind: "stratified" (classes in proportion, see `stratified_order`) or "random" (the first samples of a
            permutation, as in the papers; with many classes and few labels some classes may get none).
        per_class: so many samples of every class instead of a fraction; smaller numbers are contained in larger ones.
        classes: their names, for errors.

    Raises:
        InputError: a class would have no label in a stratified subset, or not enough samples, or there are no labels.
    """
    n = len(labels_of_train)
    if n == 0 or int(labels_of_train.min()) < 0:
        raise InputError("label_fraction: the training images have no labels to choose from")
    if kind == "stratified":
        order = stratified_order(labels_of_train, derived_seed(seed, "label_subset"))
    elif kind == "random":
        order = torch.randperm(n, generator=torch.Generator().manual_seed(derived_seed(seed, "label_subset")))
    else:
        raise InputError(f"label_subset must be one of stratified, random, not {kind!r}")
    if per_class is not None:
        return _of_each_class(labels_of_train, order, per_class, classes)
    count, needed = round(fraction * n), _every_class(labels_of_train[order]) if kind == "stratified" else 1
    if count < needed:
        smallest = min(1.0, ceil(needed / n * 1e6) / 1e6)
        raise InputError(
            f"label_fraction={fraction:g} of {n} training images is {count} labels, which leaves a class without one; "
            f"the smallest fraction that works here is {smallest:g}"
        )
    return order[:count].sort().values


def _of_each_class(labels: Tensor, order: Tensor, count: int, classes: Sequence[str]) -> Tensor:
    """Positions of the first `count` of every class in an order, sorted."""
    grouped = order[labels[order].argsort(stable=True)]
    counts = torch.bincount(labels).tolist()
    sizes = [size for size in counts if size]
    if min(sizes) < count:
        label = counts.index(min(sizes))
        raise InputError(
            f"labels_per_class={count}: class {classes[label] if classes else label} has only {min(sizes)} "
            f"of the {len(labels):,} training images"
        )
    return torch.cat([members[:count] for members in torch.split(grouped, sizes)]).sort().values


def _every_class(labels: Tensor) -> int:
    """Length of the shortest prefix of the labels in which every class occurs."""
    seen: dict[int, int] = {}
    for position, label in enumerate(labels.tolist()):
        seen.setdefault(label, position + 1)
    return max(seen.values())


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """A seeded order of the positions 0..N-1, int64 (N,).

    It starts with one sample of every class. The first m samples hold floor(m c / N) or ceil(m c / N) samples of a
    class of c: for every larger m if all classes have the same size, otherwise as soon as the start allows it.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    grouped = shuffled[labels[shuffled].argsort(stable=True)]
    sizes = [size for size in torch.bincount(labels).tolist() if size]
    ties = torch.randperm(len(sizes), generator=generator).tolist()
    members = torch.split(grouped, sizes)
    turns = np.fromiter(_proportional([sizes[k] for k in ties]), np.int64, len(labels))  # a list: 36 bytes a sample
    order = torch.empty_like(grouped)
    order[torch.from_numpy(turns).argsort(stable=True)] = torch.cat([members[k] for k in ties])
    return order


def _proportional(sizes: list[int]) -> Iterator[int]:
    """Class numbers, each as often as its class has samples, with every prefix in proportion.

    Sample j = 0, 1, .. of a class of c may be placed at m (from 1) if m c / N > j, and at m = ceil((j + 1) N / c) at
    the latest. At each place the sample with the earliest deadline is taken, which keeps both limits whenever that is
    possible.
    """
    total, taken = sum(sizes), [0] * len(sizes)
    later: list[tuple[int, int]] = []  # (first place allowed, class)
    due: list[tuple[int, int]] = []  # (last place allowed, class)
    for place in range(1, total + 1):
        while later and later[0][0] <= place:
            k = heappop(later)[1]
            heappush(due, (-(-(taken[k] + 1) * total // sizes[k]), k))
        k = place - 1 if place <= len(sizes) else heappop(due)[1]
        yield k
        taken[k] += 1
        if taken[k] < sizes[k]:
            heappush(later, (taken[k] * total // sizes[k] + 1, k))


def split_sizes(total: int, train: int | None, validation: int | None, test: int | None) -> tuple[int, int, int]:
    """Numbers of training, validation and test images out of `total`.

    Args:
        train: None: all images that are left.
        validation: None: 20 %, at least one, or if `train` is given all images that are left.
        test: None: 20 %, at least one, or if `train` and `validation` are given all images that are left.

    Raises:
        InputError: there are not enough images; names the setting and the number of images.
    """
    fifth = max(1, round(total / 5))
    given = {"train": train, "validation": validation, "test": test}
    asked = {f"dataset.{name}_samples": value for name, value in given.items() if value}
    if test is None:
        test = fifth if train is None or validation is None else total - train - validation
        least = 1
    else:
        least = min(test, 1)
    least_validation = 1 if validation is None else min(validation, 1)
    if validation is None:
        validation = fifth if train is None else total - train - test
    if train is None:
        train = total - validation - test
    if train < 1 or validation < least_validation or test < least or train + validation + test > total:
        parts = "training and validation" if least == 0 else "training, validation and test"
        said = " ".join(f"{key}={value}" for key, value in asked.items()) or "dataset"
        there = "there is 1 image" if total == 1 else f"there are {total} images"
        advice = f"lower {' or '.join(asked)}" if asked else "add images"
        raise InputError(f"{said}: {there} for {parts}, each of which needs at least one; {advice}")
    return train, validation, test
