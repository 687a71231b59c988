"""Label subsets and splits: they are nested and in proportion; errors name values that would work."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fasthebb_cli.data.dataset import label_subset
from fasthebb_cli.data.splits import split_sizes, stratified_order
from fasthebb_cli.errors import InputError

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=8)
SEEDS = st.integers(0, 2**63 - 1)


def labels_of(sizes: list[int]) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def kept_from(sizes: list[int]) -> int:
    """From this m on, one sample of every class and floor(m c / N) samples of each class fit into m places."""
    total = sum(sizes)
    fits = [sum(max(1, m * size // total) for size in sizes) <= m for m in range(total + 1)]
    return max(m for m in range(total + 1) if not fits[m]) + 1


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, seed=SEEDS)
def test_every_prefix_of_a_stratified_order_is_in_proportion(sizes: list[int], seed: int) -> None:
    labels, total = labels_of(sizes), sum(sizes)
    order = stratified_order(labels, seed)
    assert order.sort().values.tolist() == list(range(total))
    for m in range(1, total + 1):
        counts = torch.bincount(labels[order[:m]], minlength=len(sizes)).tolist()
        if m >= len(sizes):
            assert min(counts) >= 1
        if m >= kept_from(sizes):
            assert all(abs(count - m * size / total) < 1 for count, size in zip(counts, sizes, strict=True))


def test_one_large_and_many_small_classes_stay_in_proportion() -> None:
    """The simpler method, sorting samples by (rank + 0.5) / class size, is wrong by 5 here."""
    sizes = [1000] + [3] * 10
    labels = labels_of(sizes)
    order = stratified_order(labels, 0)
    for m in range(kept_from(sizes), 1031):
        assert abs(int((labels[order[:m]] == 0).sum()) - m * 1000 / 1030) < 1


@settings(deadline=None, max_examples=100)
@given(sizes=SIZES, seed=SEEDS, kind=st.sampled_from(["stratified", "random"]))
def test_subsets_are_nested_and_of_the_right_size(sizes: list[int], seed: int, kind: str) -> None:
    labels = labels_of(sizes)
    subsets: list[set[int]] = []
    for fraction in (0.01, 0.05, 0.1, 0.25, 0.5, 0.9, 1.0):
        try:
            subset = label_subset(labels, fraction, seed, kind=kind)
        except InputError:
            assert not subsets, "a larger fraction fails where a smaller one worked"
            continue
        assert len(subset) == round(fraction * len(labels))
        assert kind == "random" or len(set(labels[subset].tolist())) == len(sizes)
        subsets.append(set(subset.tolist()))
    assert all(small <= large for small, large in pairwise(subsets))
    assert len(subsets[-1]) == len(labels)


def test_subsets_depend_on_the_seed_and_the_kind() -> None:
    labels = labels_of([50] * 4)
    subsets = {
        tuple(label_subset(labels, 0.5, seed, kind=kind).tolist())
        for seed in (0, 1)
        for kind in ("stratified", "random")
    }
    assert len(subsets) == 4


def test_balanced_classes_get_the_same_number_of_labels() -> None:
    labels = labels_of([400] * 10)[torch.randperm(4000, generator=torch.Generator().manual_seed(3))]
    assert torch.bincount(labels[label_subset(labels, 0.01, 0, kind="stratified")]).tolist() == [4] * 10


@pytest.mark.parametrize(("classes", "samples"), [(100, 40_000), (200, 90_000)])
def test_a_random_subset_may_leave_classes_without_a_label(classes: int, samples: int) -> None:
    """So does nearly every random subset of 1 % of CIFAR-100 and Tiny ImageNet."""
    labels = torch.arange(classes).repeat_interleave(samples // classes)
    found = [labels[label_subset(labels, 0.01, seed, kind="random")] for seed in range(5)]
    assert {len(subset) for subset in found} == {samples // 100}
    assert min(len(subset.unique()) for subset in found) < classes


@pytest.mark.parametrize(("kind", "seen"), [("stratified", 3), ("random", 1)])
def test_the_smallest_fraction_that_an_error_names_works_and_no_smaller_one(kind: str, seen: int) -> None:
    labels = labels_of([100, 7, 3])
    with pytest.raises(InputError, match=r"label_fraction=0.001 of 110 training images is 0 labels") as caught:
        label_subset(labels, 0.001, 0, kind=kind)
    smallest = float(str(caught.value).split()[-1])
    subset = label_subset(labels, smallest, 0, kind=kind)
    assert len(set(labels[subset].tolist())) == seen
    with pytest.raises(InputError, match="label_fraction"):
        label_subset(labels, (len(subset) - 1) / 110, 0, kind=kind)


def test_images_without_labels_have_no_subset() -> None:
    with pytest.raises(InputError, match="no labels"):
        label_subset(torch.full((5,), -1), 1.0, 0, kind="stratified")


def test_split_sizes() -> None:
    assert split_sizes(100, None, None, None) == (60, 20, 20)
    assert split_sizes(100, None, None, 0) == (80, 20, 0)
    assert split_sizes(100, 70, None, 0) == (70, 30, 0)
    assert split_sizes(100, None, 5, None) == (75, 5, 20)
    assert split_sizes(100, 50, 10, None) == (50, 10, 40)
    assert split_sizes(100, 10, 10, 10) == (10, 10, 10)
    assert split_sizes(2, None, None, 0) == (1, 1, 0)
    assert split_sizes(3, None, None, None) == (1, 1, 1)


@pytest.mark.parametrize("train", [91, 100, 1000])
def test_an_impossible_split_names_the_setting_and_the_number(train: int) -> None:
    with pytest.raises(
        InputError, match=rf"dataset.train_samples={train} dataset.test_samples=10: there are 100 images"
    ):
        split_sizes(100, train, None, 10)


def test_too_few_images_are_not_blamed_on_a_setting() -> None:
    with pytest.raises(InputError, match=r"^dataset: there is 1 image for training and validation, .*; add images$"):
        split_sizes(1, None, None, 0)
