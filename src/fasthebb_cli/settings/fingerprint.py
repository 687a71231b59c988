"""The fingerprint of a stage, which leaves out every setting that has the default of its key.

So a new key leaves the directories of earlier runs as they are, if its default does what was done before. A default
that changes would make them pass for new ones: then NUMBERS_VERSION must rise (tests/golden/test_defaults.py).
"""

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from fasthebb_cli.settings.conf import defaults_of
from fasthebb_cli.settings.stages import ALL_KINDS

NUMBERS_VERSION = 12  # raise it when a change of the code or of a default changes results


def fingerprint_of(content: Mapping[str, Any]) -> str:
    """Of what is covered, as flat keys with `kind` among them: 32 hexadecimal digits."""
    defaults = omitted(content["kind"])
    changed = {key: value for key, value in content.items() if key not in defaults or value != defaults[key]}
    return blake2b(json.dumps(changed, sort_keys=True).encode(), digest_size=16).hexdigest()


def omitted(kind: str) -> dict[str, Any]:
    """Flat keys with the values at which the fingerprint of such a stage leaves them out."""
    own = _fixed(kind, without=ALL_KINDS[kind].numberless)
    return own | _fixed("rule") | {"dataset.mirror": defaults_of("dataset")["mirror"]}


def with_later_keys(content: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier run's fingerprint covers, with the defaults of the keys that are newer than that run."""
    kind = content.get("kind")
    if kind not in ALL_KINDS or content.get("rule.name") in ALL_KINDS[kind].rules_without_settings:
        return dict(content)
    own, rule = _fixed(kind, without=ALL_KINDS[kind].numberless), _fixed("rule", without=["whitening"])
    later = own | (rule if rule.keys() & content.keys() else {})
    return dict(content) | {key: value for key, value in later.items() if key not in content}


def _fixed(group: str, without: Iterable[str] = ()) -> dict[str, Any]:
    """Defaults as flat keys, but for those that other keys decide and for mappings, which are empty."""
    return {
        f"{group}.{key}": value
        for key, value in defaults_of(group).items()
        if key not in without
        and not isinstance(value, dict)
        and not (isinstance(value, str) and ("${" in value or value == "???"))
    }
