"""What a cell took: the sums over its stages."""

from fasthebb_cli.console.spent import backward_passes_of, seconds_of

LEARNT = {"seconds": 2.0, "backward_passes": 0, "measures": False}
TUNED = {"seconds": 3.0, "backward_passes": 600, "measures": False}
PROBED = {"seconds": 4.0, "backward_passes": 5000, "measures": True}


def test_backward_passes_of_the_stages_that_learn_and_seconds_of_all() -> None:
    assert backward_passes_of([LEARNT, TUNED, PROBED]) == 600
    assert backward_passes_of([LEARNT, PROBED]) == 0
    assert backward_passes_of([PROBED]) == 5000
    assert seconds_of([LEARNT, TUNED, PROBED]) == 9.0


def test_a_stage_of_an_earlier_version_did_not_count() -> None:
    assert backward_passes_of([LEARNT, {"seconds": 1.0, "measures": False}]) is None
