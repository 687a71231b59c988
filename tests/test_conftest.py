"""What a machine lacks skips a test, and fails it where everything was installed, lest CI pass on what it left out.

Tests of a group run one after the other: those of several processes would else take the processors from each other.
"""

import os

import pytest

from tests.conftest import lacking


@pytest.mark.parametrize(("everything", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_a_test_that_lacks_something(
    everything: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTHEBB_TEST_ALL", everything)
    with pytest.raises(outcome, match="needs a mill"):
        lacking("needs a mill")


@pytest.mark.xdist_group("any")
def test_groups_of_tests_stay_together(request: pytest.FixtureRequest) -> None:
    """Versions of pytest and pytest-xdist that do not fit each other scatter them in silence."""
    if os.environ.get("PYTEST_XDIST_WORKER") and request.config.getoption("loadgroup"):
        assert request.node.nodeid.endswith("@any")
