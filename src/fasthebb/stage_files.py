"""The files in a stage's directory that lead to its model. Imports no torch."""

import json
from pathlib import Path
from typing import Any

RESULTS_FILE = "results.json"
MODEL_FILE = "model.safetensors"
FINGERPRINT_FILE = "fingerprint.json"


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds a mapping.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete its directory to start that stage over") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds no mapping; delete its directory to start that stage over")
    return value
