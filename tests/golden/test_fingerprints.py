"""Finished runs of users stay finished: no stage that could be planned before gets another directory."""

import pytest

from tests.golden.freeze import FINGERPRINTS, differing, fingerprints, read


@pytest.mark.slow
def test_every_planned_stage_has_the_fingerprint_that_was_recorded() -> None:
    remedy = "if they are meant to differ: python -m tests.golden.record fingerprints"
    assert differing(read(FINGERPRINTS), fingerprints()) == [], remedy
