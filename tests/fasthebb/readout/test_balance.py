"""Classes that count the same although one has few labels: rows that weigh more are rows that occur more than once."""

import pytest
import torch
from torch import Tensor

from fasthebb.readout import kernel, ridge
from fasthebb.readout.candidates import Rows, balanced, judged
from fasthebb.readout.choose import fitted, fitted_to_many

COUNTS = (18, 6, 3)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_of(counts: tuple[int, ...] = COUNTS, copies: int = 2, noise: float = 0.8) -> Rows:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centres = normal(len(counts), 5, seed=1)
    return Rows(centres[labels] + noise * normal(copies, len(labels), 5, seed=2), labels, copies, len(counts))


def repeated(rows: Rows) -> Rows:
    """Each image as often as it makes classes equal."""
    times_L = (COUNTS[0] // torch.bincount(rows.labels_L))[rows.labels_L]
    index = torch.arange(len(rows.labels_L)).repeat_interleave(times_L)
    return Rows(rows.copies_RLK[:, index], rows.labels_L[index], rows.scored, rows.classes)


def weighted(rows: Rows) -> Rows:
    """Weights of 1, 3 and 6, as often as `repeated` has each image."""
    weight_C = torch.tensor([COUNTS[0] / count for count in COUNTS]).double()
    return Rows(rows.copies_RLK, rows.labels_L, rows.scored, rows.classes, weight_C)


def test_weights_make_classes_equal_and_are_one_in_the_mean() -> None:
    labels = rows_of().labels_L
    weight_C = balanced(labels, 4)
    sums = torch.stack([weight_C[labels][labels == k].sum() for k in range(3)])
    torch.testing.assert_close(sums, torch.full((3,), 9.0).double())
    assert float(weight_C[labels].mean()) == pytest.approx(1)
    assert balanced(torch.arange(3).repeat(2), 3).tolist() == [1.0, 1.0, 1.0]


def test_a_kernel_with_weights_is_one_with_repeated_rows() -> None:
    rows, x = rows_of(), kernel.unit_rows(normal(9, 5, seed=7))
    few, many = (
        fitted(given, classifier="kernel", sharpness=3.0, ridge=0.3).buffers
        for given in (weighted(rows), repeated(rows))
    )
    scores = [kernel.kernel(x, made["rows"], 3.0) @ made["weight"] for made in (few, many)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-5)


def test_ridge_from_sums_with_weights_is_one_with_repeated_rows() -> None:
    rows = rows_of()
    few, many = (
        fitted(given, classifier="ridge", ridge=0.1).buffers["linear"] for given in (weighted(rows), repeated(rows))
    )
    torch.testing.assert_close(few, many, rtol=1e-5, atol=1e-6)
    few, many = (fitted_to_many(given, 0, None, 0.1).buffers["linear"] for given in (weighted(rows), repeated(rows)))
    torch.testing.assert_close(few, many, rtol=1e-5, atol=1e-6)


def test_what_is_left_out_with_weights_is_what_a_model_without_it_says() -> None:
    rows = weighted(rows_of())
    flat, targets = rows.flat_MK, rows.targets_MC
    copies, images = rows.copies_RLK.shape[:2]
    assert rows.weight_L is not None
    weight_M = rows.weight_L.repeat(copies)
    similar = kernel.kernel(flat, flat, 3.0)
    by_kernel = kernel.left_out_scores(*kernel.fit(similar, targets, 0.3, weight_M), targets, copies)
    products = ridge.Products(5, 3)
    products.add(flat.double(), targets, weight_M)
    strength = 0.2 / float(products.inner_KK.diagonal().mean())
    x_RLK = flat.unflatten(0, (copies, images))
    targets_LC = kernel.targets(rows.labels_L, 3)
    by_sums = ridge.left_out_scores(x_RLK, targets_LC, *ridge.fit(products, strength), rows.weight_L)
    for image in range(images):
        own = torch.arange(copies) * images + image
        others = torch.tensor([row for row in range(len(flat)) if row not in own.tolist()])
        alpha = kernel.solve(similar[others][:, others], targets[others], 0.3, weight_M[others])
        torch.testing.assert_close(by_kernel[image], similar[own][:, others].double() @ alpha, rtol=1e-6, atol=1e-8)
        rest = flat[others].double()
        inner = rest.T @ (rest * weight_M[others, None]) + 0.2 * torch.eye(5).double()
        weight = torch.linalg.solve(inner, rest.T @ (targets[others] * weight_M[others, None]))
        torch.testing.assert_close(by_sums[image], flat[own].double() @ weight, rtol=1e-6, atol=1e-8)


def test_candidates_are_judged_by_classes_not_by_images() -> None:
    labels = torch.tensor([0] * 8 + [1] * 2)
    frequent = judged("frequent", {}, torch.tensor([[1.0, 0.0]]).repeat(10, 1), labels, balanced(labels, 2))
    assert frequent.top1 == pytest.approx(0.5)
    assert judged("frequent", {}, torch.tensor([[1.0, 0.0]]).repeat(10, 1), labels).top1 == pytest.approx(0.8)


def test_a_rare_class_is_found_more_often() -> None:
    truth = rows_of((300, 300), copies=1, noise=1.5)
    rare = torch.cat([torch.arange(150), torch.arange(300, 306)])
    few = Rows(truth.copies_RLK[:, rare], truth.labels_L[rare], 1, 2)
    found = []
    for weight_C in (None, balanced(few.labels_L, 2)):
        given = Rows(few.copies_RLK, few.labels_L, 1, 2, weight_C)
        for classifier in ("kernel", "ridge"):
            made = fitted(given, classifier=classifier, sharpness=1.0, ridge=0.3).buffers
            x = kernel.unit_rows(truth.copies_RLK[0])
            scores = x @ made["linear"]
            if classifier == "kernel":
                scores = kernel.kernel(x, made["rows"], 1.0) @ made["weight"]
            found.append(float((scores.argmax(1) == 1)[300:].double().mean()))
    assert found[2] > found[0] + 0.2
    assert found[3] > found[1] + 0.05
