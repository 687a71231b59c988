"""A setting at its default is as good as none: so a new key leaves earlier directories as they are."""

from typing import Any

import pytest

from fasthebb_cli.settings.fingerprint import fingerprint_of, with_later_keys

FINETUNE: dict[str, Any] = {"kind": "finetune", "seed": 0, "finetune.lr": 0.01}


@pytest.mark.parametrize(
    ("key", "default", "other"),
    [
        ("finetune.augment", "shift", "none"),
        ("finetune.by_rule", [], ["conv1"]),
        ("rule.normalise", False, True),
        ("rule.whitening", None, 0.1),
        ("dataset.mirror", True, False),
    ],
)
def test_only_another_value_than_the_default_changes_a_fingerprint(key: str, default: Any, other: Any) -> None:
    assert fingerprint_of(FINETUNE | {key: default}) == fingerprint_of(FINETUNE)
    assert fingerprint_of(FINETUNE | {key: other}) != fingerprint_of(FINETUNE)


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", 0), ("finetune.lr", 0.01), ("model.norm", None), ("dataset.size", 32), ("probe.pool", 4)],
)
def test_whatever_is_no_default_of_its_kind_always_enters(key: str, value: Any) -> None:
    without = {name: known for name, known in FINETUNE.items() if name != key}
    assert fingerprint_of(without | {key: value}) != fingerprint_of(without)


def test_a_rate_that_the_rule_gives_always_enters() -> None:
    """`lr: ${rule.lr}` is no value: it differs from rule to rule."""
    pretrain = {"kind": "pretrain"}
    assert fingerprint_of(pretrain | {"pretrain.lr": 0.1}) != fingerprint_of(pretrain)


def test_an_earlier_run_is_read_with_the_defaults_of_later_keys() -> None:
    found = with_later_keys(FINETUNE)
    assert (found["finetune.lr"], found["finetune.patience"]) == (0.01, None)
    assert not any(key.startswith("rule.") for key in found)  # what the rule is does not matter there
    by_rule = with_later_keys(FINETUNE | {"rule.normalise": True})
    assert (by_rule["rule.normalise"], by_rule["rule.per_input"]) == (True, False)
    assert "probe.batch_size" not in with_later_keys({"kind": "probe"})  # it is not covered
    assert with_later_keys({"kind": "of tomorrow"}) == {"kind": "of tomorrow"}
    unread = {"kind": "pretrain", "rule.name": "random"}
    assert with_later_keys(unread) == unread
