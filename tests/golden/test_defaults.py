"""A fingerprint leaves out what has its default, so a default that changes must not do so in silence."""

import pytest

from tests.golden.freeze import DEFAULTS, defaults, read, unannounced


def test_no_default_changed_without_a_new_version() -> None:
    assert unannounced(read(DEFAULTS), defaults()) == []


def test_every_default_is_recorded() -> None:
    assert read(DEFAULTS) == defaults(), "record it by `python -m tests.golden.record defaults`"


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("change", [{"finetune.augment": "none"}, {"rule.lr": 0.2}, {"dataset.mirror": None}])
def test_a_change_is_found(change: dict[str, object], version: int) -> None:
    """Of a value, to null too, or of a key that is gone; a new key may come, and with a new version all may change."""
    recorded = read(DEFAULTS)
    changed = recorded | change | {"rule.of_tomorrow": 1, "version": recorded["version"] + version}
    (key,) = change
    found = unannounced(recorded, changed)
    assert [line.split()[3] for line in found] == ([] if version else [key])
    assert all("raise NUMBERS_VERSION in settings/fingerprint.py" in line for line in found)
    gone = {name: value for name, value in changed.items() if name != key}
    assert len(unannounced(recorded, gone)) == 1 - version
