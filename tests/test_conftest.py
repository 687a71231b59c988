"""What a machine lacks skips a test, and fails it where everything was installed, lest CI pass on what it left out."""

import pytest

from tests.conftest import lacking


@pytest.mark.parametrize(("everything", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_a_test_that_lacks_something(
    everything: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTHEBB_TEST_ALL", everything)
    with pytest.raises(outcome, match="needs a mill"):
        lacking("needs a mill")
