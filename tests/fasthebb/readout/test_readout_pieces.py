"""Closed forms against what they stand for: a model fitted anew without an image, a dense solve, a loop over images."""

import pytest
import torch
from torch import Tensor, nn

from fasthebb.nets.networks import conv6
from fasthebb.readout import choose, graph, kernel, projection, ridge
from fasthebb.readout.calibration import best_gain, calibration_error, calibration_gaps, gain_for
from fasthebb.readout.candidates import SHARPNESS, Rows, best, expected_top1, judged
from fasthebb.readout.choose import basis, best_sharpness, fitted, fitted_to_sums
from fasthebb.readout.features import Features, first_maps
from fasthebb.readout.moments import Moments
from fasthebb.readout.projection import leading_components, standard_scale, view_whitening
from fasthebb.readout.views import DRAWS, VIEWS, draws


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("copies", [1, 3])
def test_scores_of_a_left_out_image_are_those_of_a_model_that_never_saw_it(copies: int) -> None:
    images, classes = 12, 3
    rows = kernel.unit_rows(normal(copies * images, 5))
    labels = torch.arange(images) % classes
    targets = kernel.targets(labels.repeat(copies), classes)
    similar = kernel.kernel(rows, rows, 3.0)
    alpha, inverse = kernel.fit(similar, targets, 0.3)
    found = kernel.left_out_scores(alpha, inverse, targets, copies)
    for image in range(images):
        own = torch.arange(copies) * images + image
        others = torch.tensor([row for row in range(len(rows)) if row not in own.tolist()])
        without = kernel.solve(similar[others][:, others], targets[others], 0.3)
        torch.testing.assert_close(found[image], similar[own][:, others].double() @ without, rtol=1e-6, atol=1e-8)


def test_what_spreads_over_a_graph_solves_its_equation() -> None:
    rows = kernel.unit_rows(normal(40, 6))
    made = graph.neighbour_graph(rows, 4)
    dense = made.to_dense()
    torch.testing.assert_close(dense, dense.T)
    similar = rows @ rows.T
    neighbours = similar.fill_diagonal_(-2).topk(4, dim=1).indices
    expected = torch.zeros(40, 40)
    for i in range(40):
        for j in neighbours[i]:
            expected[i, j] += similar[i, j].clamp_min(0) / 2
            expected[j, i] += similar[i, j].clamp_min(0) / 2
    degree = expected.sum(1).rsqrt()
    torch.testing.assert_close(dense, expected * degree[:, None] * degree, rtol=1e-5, atol=1e-6)
    sources = torch.eye(40)[:, :7]
    found = graph.spread(made, sources, 0.98)
    torch.testing.assert_close(found - 0.98 * dense @ found, sources, rtol=0, atol=1e-4)


@pytest.mark.parametrize("group", [[0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 2, 1]])
def test_propagation_to_a_labelled_image_does_not_see_its_own_group(group: list[int]) -> None:
    labels, groups = torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor(group)
    between = normal(6, 6).abs()  # from each image
    from_groups = between @ torch.nn.functional.one_hot(groups).float()
    found = graph.left_out_scores(from_groups, labels, groups, 2)
    for image in range(6):
        others = groups != groups[image]
        alone = torch.arange(int(others.sum()))
        expected = graph.propagated(between[image : image + 1, others], labels[others], alone, 2)
        torch.testing.assert_close(found[image : image + 1], expected)


def test_groups_of_labelled_images_are_of_one_class_and_few() -> None:
    few = torch.arange(20) % 2
    assert torch.equal(graph.groups(few, 2), torch.arange(20))
    labels = torch.randint(3, (500,), generator=torch.Generator().manual_seed(0))
    found = graph.groups(labels, 4)
    assert len(found.unique()) == 3 * graph.GROUPS
    assert len(torch.stack([found, labels]).unique(dim=1).T) == 3 * graph.GROUPS
    assert int(torch.bincount(found).max()) <= -(-int(torch.bincount(labels).max()) // graph.GROUPS)


def test_sums_over_batches_give_mean_and_covariance() -> None:
    rows = normal(50, 4)
    moments = Moments(4)
    for batch in rows.split(7):
        moments.add(batch)
    torch.testing.assert_close(moments.mean().float(), rows.mean(0))
    torch.testing.assert_close(moments.covariance().float(), torch.cov(rows.T, correction=0))


def test_a_long_sum_is_right_wherever_it_is_saved() -> None:
    rows = 100 + normal(3000, 3)
    moments = Moments(3)
    for batch in rows.split(7):
        saved = {name: value.clone() for name, value in moments.state_dict().items()}
        moments = Moments(3)
        moments.load_state_dict(saved)
        moments.add(batch)
    torch.testing.assert_close(moments.mean_product(), rows.T.double() @ rows.double() / 3000, rtol=1e-6, atol=0)
    together = Moments(3)
    for batch in rows.split(7):
        together.add(batch)
    assert torch.equal(moments.mean_product(), together.mean_product())


@pytest.mark.parametrize(("exact", "share"), [(4096, 1 - 1e-6), (1000, 0.995)], ids=["float32", "iterated"])
def test_leading_components_of_many_features_are_nearly_the_exact_ones(
    monkeypatch: pytest.MonkeyPatch, exact: int, share: float
) -> None:
    monkeypatch.setattr(projection, "EXACT", exact)
    size = 1100
    rows = normal(400, size) * torch.logspace(0, -2, size)
    covariance = torch.cov(rows.T, correction=0).double()
    basis = leading_components(covariance, 20)
    torch.testing.assert_close(basis.T @ basis, torch.eye(20).double(), rtol=0, atol=1e-5)
    best = torch.linalg.eigvalsh(covariance)[-20:].sum()
    assert float((basis * (covariance @ basis)).sum()) > share * float(best)


def test_whitening_makes_the_differences_of_views_equal_in_all_directions() -> None:
    differences = normal(200, 6) * torch.tensor([3.0, 1, 1, 1, 0.5, 0.1])
    products = (differences.T @ differences / len(differences) / 2).double()
    whitening = view_whitening(products, 1e-9)
    torch.testing.assert_close(whitening @ products @ whitening, torch.eye(6).double(), rtol=0, atol=1e-5)
    strong = view_whitening(products, 1e6)
    torch.testing.assert_close(strong / strong[0, 0], torch.eye(6).double(), rtol=0, atol=1e-4)


def test_a_rarely_active_feature_counts_no_more_than_the_floor_lets_it() -> None:
    scale = standard_scale(torch.tensor([1.0, 1.0, 1e-12]), 0.1)
    torch.testing.assert_close(scale, torch.tensor([1.0, 1.0, 1 / (0.1 * 2 / 3)]), rtol=1e-4, atol=0)


def test_layers_are_read_before_their_batch_norm_and_pooled() -> None:
    network = conv6(channels=3, size=32, classes=4, width=0.1).eval()
    images = normal(2, 3, 32, 32)
    assert first_maps(network, 3, 32) == ["conv1", "conv2"]
    features = Features(network, ["conv2", "conv1"], 4, root=True).eval()
    found = features(images)
    conv1, conv2 = network[0], network[1]
    assert isinstance(conv1, nn.Sequential)
    assert isinstance(conv2, nn.Sequential)
    first, second = conv1[:-1](images), conv2[:-1](conv1(images))
    expected = torch.cat([nn.functional.adaptive_avg_pool2d(x, 4).flatten(1).sqrt() for x in (first, second)], dim=1)
    torch.testing.assert_close(found, expected)
    assert [name for name, _ in features.named_children()] == ["conv1", "conv2"]


@pytest.mark.parametrize("kind", VIEWS)
def test_a_view_depends_on_its_own_numbers_alone(kind: str) -> None:
    images, numbers = normal(4, 3, 16, 16), torch.rand(4, DRAWS, generator=torch.Generator().manual_seed(1))
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    whole = VIEWS[kind](images, numbers, mean, std)
    torch.testing.assert_close(VIEWS[kind](images[2:3], numbers[2:3], mean, std), whole[2:3])
    assert not torch.allclose(whole, images)


def test_a_photograph_is_moved_by_whole_pixels() -> None:
    images = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    numbers = torch.tensor([[0.9, 0.99, 0.5, 0.5, 0.5, 0.5, 0, 0]])  # not mirrored, 2 to the left, same light
    moved = VIEWS["photograph"](images, numbers, torch.zeros(1), torch.ones(1))
    torch.testing.assert_close(moved[..., :-2], images[..., 2:])


def test_the_best_gain_makes_scores_as_sure_as_they_are_right() -> None:
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=draws) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=draws)[:, 0]
    assert best_gain(logits / 37, labels) == pytest.approx(37, rel=0.1)
    confidence, predicted = logits.softmax(1).max(1)
    assert calibration_error(calibration_gaps(confidence, predicted == labels), len(labels)) < 0.03
    assert calibration_error(calibration_gaps(torch.ones(100), torch.arange(100) < 60), 100) == pytest.approx(0.4)


def test_calibration_error_is_that_of_a_loop_over_bins_however_the_images_are_split() -> None:
    confidence_N, right_N = torch.rand(500).clamp_min(0.1), torch.rand(500) < 0.6
    bins: dict[int, list[tuple[float, float]]] = {}
    for confidence, right in zip(confidence_N.tolist(), right_N.tolist(), strict=True):
        bins.setdefault(min(int(confidence * 15), 14), []).append((confidence, float(right)))
    naive = sum(
        len(items) / 500 * abs(sum(c for c, _ in items) / len(items) - sum(r for _, r in items) / len(items))
        for items in bins.values()
    )
    assert naive > 0.05
    parts = [calibration_gaps(c, r) for c, r in zip(confidence_N.split(33), right_N.split(33), strict=True)]
    assert calibration_error(torch.stack(parts).sum(0), 500) == pytest.approx(naive, rel=1e-6)


@pytest.mark.parametrize("copies", [1, 2])
def test_ridge_scores_of_a_left_out_image_are_those_of_a_model_that_never_saw_it(copies: int) -> None:
    x, classes = normal(copies, 12, 4), 3
    labels = torch.arange(12) % classes
    targets = kernel.targets(labels, classes)
    products = ridge.Products(4, classes)
    products.add(x.flatten(0, 1).double(), targets.repeat(copies, 1))
    weight, inverse = ridge.fit(products, 0.1)
    found = ridge.left_out_scores(x, targets, weight, inverse)
    strength = 0.1 * float(products.inner_KK.diagonal().mean())
    for image in range(12):
        others = [other for other in range(12) if other != image]
        rest = x[:, others].flatten(0, 1).double()
        regular = rest.T @ rest + strength * torch.eye(4).double()
        without = torch.linalg.solve(regular, rest.T @ targets[others].repeat(copies, 1))
        torch.testing.assert_close(found[image], x[:, image].double() @ without, rtol=1e-6, atol=1e-8)


def test_a_gain_can_be_found_for_a_mean_confidence() -> None:
    scores = normal(500, 4)
    sure = (scores * gain_for(scores, 0.8)).softmax(1).amax(1).mean()
    assert float(sure) == pytest.approx(0.8, abs=0.02)


def rows_of(images: int, copies: int = 3, size: int = 6, classes: int = 3) -> Rows:
    labels = torch.arange(images) % classes
    centres = normal(classes, size, seed=1)
    return Rows(centres[labels] + 0.8 * normal(copies, images, size, seed=2), labels, 2, classes)


@pytest.mark.parametrize("strength", [0.03, 3.0])
def test_a_kernel_with_every_row_as_a_landmark_is_the_whole_kernel(strength: float) -> None:
    rows = rows_of(20)
    whole = fitted(rows, classifier="kernel", sharpness=3.0, ridge=strength)
    flat, targets = rows.flat_MK, rows.targets_MC
    products = ridge.Products(len(flat), rows.classes)
    for some in (slice(0, 13), slice(13, None)):
        products.add(kernel.kernel(flat[some], flat, 3.0).double(), targets[some])
    made = {"rows": flat, "sharpness": torch.tensor(3.0)}
    found = fitted_to_sums(rows, products, made, strength)
    new = kernel.kernel(kernel.unit_rows(normal(9, 6, seed=5)), flat, 3.0)
    torch.testing.assert_close(new @ found.buffers["weight"], new @ whole.buffers["weight"], rtol=1e-2, atol=1e-3)
    assert found.report["expected_top1"] == whole.report["expected_top1"]
    assert found.report["expected_loss"] == pytest.approx(whole.report["expected_loss"], rel=1e-2)
    assert found.report["chosen"] == {"classifier": "kernel", "sharpness": 3.0, "ridge": strength, "landmarks": 60}


def test_few_landmarks_are_distinct_images_in_all_their_copies() -> None:
    rows = rows_of(20)
    made = basis(rows, 7, None, None).buffers
    expected = kernel.unit_rows(torch.stack([rows.copies_RLK[k % 3, k] for k in range(7)]))
    torch.testing.assert_close(made["rows"], expected)
    assert float(made["sharpness"]) in SHARPNESS
    assert basis(rows, 0, None, None).buffers["rows"].numel() == 0


@pytest.mark.parametrize("counts", [(100, 100), (150, 50)])
def test_a_class_that_spreads_further_than_others_takes_no_images_of_theirs(counts: tuple[int, int]) -> None:
    """All images are scored higher for class 0; those of class 1 less so. Classes are as frequent as the labels say."""
    truth = torch.arange(2).repeat_interleave(torch.tensor(counts))
    z = torch.tensor([[1.0, 0.3], [0.3, 1.0]])[truth] + 0.2 * normal(200, 2)
    soft = torch.stack([5 - 3.0 * truth, 0.5 + truth], 1)
    positions = torch.tensor([0, 1, 2, 197, 198, 199]) if counts[0] == counts[1] else torch.tensor([0, 1, 2, 199])
    rows = Rows(z[None, positions], truth[positions], 1, 2)
    scores = kernel.unit_rows(z).double() @ choose.from_pseudo_labels(z, soft, positions, rows)
    assert soft.argmax(1).sum() == 0, "nothing to mend"
    assert float((scores.argmax(1) == truth).double().mean()) > 0.85


def test_few_labels_say_little_of_how_frequent_classes_are() -> None:
    """Two classes of 100 images, of which five and one were drawn to be labelled. The graph leans to neither."""
    truth = torch.arange(2).repeat_interleave(100)
    z = torch.tensor([[1.0, 0.3], [0.3, 1.0]])[truth] + 0.3 * normal(200, 2)
    near = z @ torch.tensor([1.0, -1.0])
    soft = torch.stack([near, -near], 1).sigmoid()
    positions = torch.tensor([0, 1, 2, 3, 4, 199])
    rows = Rows(z[None, positions], truth[positions], 1, 2)
    scores = kernel.unit_rows(z).double() @ choose.from_pseudo_labels(z, soft, positions, rows)
    assert float((scores.argmax(1) == truth).double().mean()) > 0.9


def test_labels_are_tried_to_reach_near_and_far() -> None:
    rows = rows_of(30, copies=1)
    more = normal(3, 6, seed=1)[torch.arange(300) % 3] + 0.8 * normal(300, 6, seed=3)
    everything = torch.cat([rows.copies_RLK[0], more])
    found = fitted(rows, everything_NK=everything, positions_L=torch.arange(30), classifier="auto").report
    names = [one["name"] for one in found["candidates"]]
    assert names == ["kernel"] * 9 + ["both", "propagation", "propagation"]
    reaches = [one["numbers"]["reach"] for one in found["candidates"][-2:]]
    assert reaches == list(choose.REACH)
    spread = max(found["candidates"][-2:], key=lambda one: (one["top1"], -one["loss"]))
    assert found["candidates"][9]["numbers"].items() >= spread["numbers"].items()


def test_landmarks_that_rounding_makes_alike_are_regularised_until_they_can_be_solved() -> None:
    """A smooth kernel among many landmarks has fewer directions than float32 sums can tell from none."""
    rows = rows_of(400, size=4)
    landmarks = rows.flat_MK[:300]
    products = ridge.Products(300, rows.classes)
    for row, target in zip(rows.flat_MK.split(100), rows.targets_MC.split(100), strict=True):
        products.add(kernel.kernel(row, landmarks, 0.05), target)
    metric = kernel.kernel(landmarks, landmarks, 0.05).double()
    assert torch.linalg.cholesky_ex(products.inner_KK + 1e-3 * metric)[1] > 0, "nothing to mend"
    weight, _ = ridge.fit(products, 1e-3, metric)
    scores = kernel.kernel(rows.flat_MK, landmarks, 0.05).double() @ weight
    linear = fitted(rows, classifier="ridge").buffers["linear"].double()
    hits = [
        (one.argmax(1) == rows.targets_MC.argmax(1)).double().mean() for one in (scores, rows.flat_MK.double() @ linear)
    ]
    assert hits[0] > hits[1] - 0.02


def test_the_sharpness_of_a_kernel_with_landmarks_is_chosen_by_what_is_left_out_of_all_rows() -> None:
    """A class on either side of a plane wants a smooth kernel, classes like a chessboard a sharp one."""
    unit = kernel.unit_rows(normal(1000, 6))
    noise = torch.rand(1000, generator=torch.Generator().manual_seed(1)) < 0.3
    sides = [(unit[:, :count] > 0).sum(1) % 2 for count in (1, 4)]
    chosen = [best_sharpness(Rows(unit[None], (y + noise.long()) % 2, 1, 2), unit[:100], None) for y in sides]
    assert chosen[0] < chosen[1]


def test_sums_over_all_rows_are_linear_ridge_in_memory() -> None:
    rows = rows_of(20)
    products = ridge.Products(6, rows.classes)
    for row, target in zip(rows.flat_MK.split(7), rows.targets_MC.split(7), strict=True):
        products.add(row, target)
    found = fitted_to_sums(rows, products, {"rows": torch.empty(0)}, None)
    whole = fitted(rows, classifier="ridge")
    torch.testing.assert_close(found.buffers["linear"], whole.buffers["linear"], rtol=1e-3, atol=1e-5)
    assert found.report["chosen"] == whole.report["chosen"]


@pytest.mark.slow
def test_the_best_of_many_guesses_is_expected_to_be_a_guess() -> None:
    seems, expected = [], []
    for draw in range(20):
        labels = torch.randint(4, (200,), generator=torch.Generator().manual_seed(draw))
        guesses = [judged("kernel", {}, normal(200, 4, seed=100 * draw + seed), labels) for seed in range(20)]
        seems.append(best(guesses).top1)
        expected.append(expected_top1(guesses))
    assert sum(seems) / 20 > 0.29, "the best of twenty seems better than chance"
    assert sum(expected) / 20 == pytest.approx(0.25, abs=0.02)


def test_draws_depend_on_seed_view_and_image_alone() -> None:
    index = torch.tensor([5, 0, 123_456_789])
    found = draws(3, 1, index)
    assert found.shape == (3, DRAWS)
    torch.testing.assert_close(draws(3, 1, index[[2]]), found[[2]], rtol=0, atol=0)
    assert not torch.equal(draws(3, 2, index), found)
    assert not torch.equal(draws(4, 1, index), found)
    many = draws(0, 0, torch.arange(20_000))
    assert 0 <= float(many.min()) < float(many.max()) < 1
    torch.testing.assert_close(many.mean(0), torch.full((DRAWS,), 0.5), rtol=0, atol=0.01)
    torch.testing.assert_close(many.var(0), torch.full((DRAWS,), 1 / 12), rtol=0.03, atol=0)


def test_two_classifiers_together_are_the_product_of_their_probabilities() -> None:
    rows = rows_of(30)
    generator = torch.Generator().manual_seed(3)
    everything = torch.cat([rows.copies_RLK[0], rows.copies_RLK[1] + 0.1 * torch.randn(30, 6, generator=generator)])
    words = {"everything_NK": everything, "positions_L": torch.arange(30)}
    auto = fitted(rows, **words)  # type: ignore[arg-type]
    by_name = {one["name"]: one for one in auto.report["candidates"]}
    assert set(by_name) == {"kernel", "both", "propagation"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "best", lambda candidates: next(
            (one for one in candidates if one.name == "both"), max(candidates, key=lambda one: (one.top1, -one.loss))
        ))  # fmt: skip
        both = fitted(rows, **words)  # type: ignore[arg-type]
    assert both.report["chosen"]["classifier"] == "both"
    unit = kernel.unit_rows(normal(9, 6, seed=5))
    numbers = {name: both.report["chosen"][name] for name in ("sharpness", "ridge")}
    alone = fitted(rows, classifier="kernel", **numbers)
    graph_alone = fitted(rows, classifier="propagation", **words)  # type: ignore[arg-type]
    seen = kernel.kernel(unit, both.buffers["rows"], float(both.buffers["sharpness"])) @ both.buffers["weight"]
    expected = kernel.kernel(unit, alone.buffers["rows"], numbers["sharpness"]) @ alone.buffers["weight"]
    torch.testing.assert_close(seen, expected * alone.buffers["gain"], rtol=1e-4, atol=1e-5)
    ratio = (unit @ both.buffers["linear"]) / (unit @ graph_alone.buffers["linear"])
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), rtol=1e-3, atol=1e-3)


def test_scores_that_are_all_right_are_no_surer_than_their_number_shows() -> None:
    labels = torch.arange(30) % 3
    scores = torch.nn.functional.one_hot(labels, 3).double() + 0.1 * normal(30, 3)
    found = judged("kernel", {}, scores, labels)
    assert found.top1 == 1
    assert float((scores * found.gain).softmax(1).amax(1).mean()) == pytest.approx(30.5 / 31, abs=0.01)
