"""Responses on given inner products and lengths."""

import pytest
import torch

from fasthebb.responses import (
    RESPONSES,
    WITH_LENGTHS,
    WITH_SQUARES,
    PreActivation,
    Response,
    cosine,
    nearness,
    projection,
    raised_cosine,
    rectified,
)


def pre_activation(dot: list[float], weight_norm: list[float], patch_norm: float) -> PreActivation:
    """One patch and several units."""
    units = len(dot)
    return PreActivation(
        torch.tensor(dot).reshape(1, 1, units),
        torch.tensor(weight_norm).reshape(1, units),
        torch.full((1, 1, 1), patch_norm),
    )


def test_values() -> None:
    pre = pre_activation([2.0, 0.0, -1.0, -2.0], [1.0, 1.0, 1.0, 1.0], 2.0)
    assert rectified(pre).flatten().tolist() == [2, 0, 0, 0]
    assert cosine(pre).flatten().tolist() == [1, 0, -0.5, -1]
    assert raised_cosine(pre).flatten().tolist() == [1, 0.25, 0.0625, 0]


def test_zero_lengths_have_cosine_0() -> None:
    assert cosine(pre_activation([0.0, 1.0], [0.0, 1.0], 1.0)).flatten().tolist() == [0, 1]
    assert cosine(pre_activation([0.0, 0.0], [0.0, 1.0], 0.0)).flatten().tolist() == [0, 0]


def test_rounding_does_not_leave_the_range() -> None:
    """Rounding may make |x.w| a little larger than |x| |w|."""
    above, below = 1 + 1e-6, -1 - 1e-6
    pre = pre_activation([above, below], [1.0, 1.0], 1.0)
    assert cosine(pre).flatten().tolist() == [1, -1]


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
def test_what_needs_lengths_says_so(response: Response) -> None:
    bare = PreActivation(torch.ones(1, 1, 2))
    if response in (*WITH_LENGTHS, *WITH_SQUARES) and response is not projection:  # a dot without |w| is x.w / |w|
        with pytest.raises(AssertionError):
            response(bare)
    else:
        assert response(bare).shape == (1, 1, 2)


def test_the_angle_in_halves_of_a_turn() -> None:
    pre = pre_activation([2.0, 0.0, -2.0, 2**0.5], [1.0, 1.0, 1.0, 1.0], 2.0)
    torch.testing.assert_close(RESPONSES["angular"](pre).flatten(), torch.tensor([1, 0.5, 0, 0.75]))


def test_nearness_is_larger_for_the_nearer_of_two_units_whatever_their_lengths() -> None:
    x, w_KD = torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 1.0], [5.0, 10.0]])
    pre = PreActivation((w_KD @ x).reshape(1, 1, 2), weight_square_GK=w_KD.square().sum(1).reshape(1, 2))
    assert nearness(pre).flatten().tolist() == [2, 25 - 62.5]
    assert (nearness(pre).flatten() - x @ x / 2).tolist() == [-0.5 * 1, -0.5 * (16 + 64)]  # -|x - w|^2 / 2
