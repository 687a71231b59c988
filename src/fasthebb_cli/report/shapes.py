"""What the files of a stage's directory must hold for the commands that read them. Keys that are not named are free."""

from collections.abc import Mapping
from typing import Any

from fasthebb.stage_files import check_seal
from fasthebb.typed import check

CONTENT: dict[str, Any] = {
    "kind": str, "stage": str | None, "previous": str | None, "seed": int | None, "label_fraction": float | None,
    "dataset.name": str | None, "dataset.images": str | None, "model.name": str | None, "model.width": float | None,
    "rule.name": str | None, "rule.whitening": float | None,
}  # fmt: skip
RESULTS: dict[str, Any] = {
    "stage": str, "kind": str, "dataset": str, "model": str, "rule": str, "label_fraction": float, "seed": int,
    "top1": float | None, "top5": float | None, "loss": float | None, "samples": int | None, "split": str | None,
    "labels_train": int, "labels_validation": int, "epochs": int, "backward_passes": int | None, "seconds": float,
    "images_per_second": float | None, "device": str, "fingerprint": str, "versions": dict[str, str], "finished": str,
    "chosen": dict[str, Any] | None, "expected_top1": float | None, "balanced_top1": float | None,
    "imbalance": float | None,
    "calibration_error": float | None,
    "classes": list[str] | None, "confusion": list[list[int]] | None,
    "layers": dict[str, dict[str, float | None]] | None,
}  # fmt: skip
MOST_IMAGES = 10**12
SHARES = ("top1", "top5", "balanced_top1", "label_fraction", "expected_top1", "calibration_error")
COUNTS = ("seed", "samples", "labels_train", "labels_validation", "epochs", "backward_passes", "seconds",
          "images_per_second", "loss", "imbalance")  # fmt: skip


def check_content(content: Mapping[str, Any]) -> None:
    """Checks what fingerprint.json holds.

    Raises:
        ValueError: a key is missing, or its value is of another type or out of range.
    """
    check("", content, CONTENT)
    _check_numbers(content)


def check_results(results: Mapping[str, Any]) -> None:
    """Checks what results.json holds.

    Raises:
        ValueError: as `check_content`.
    """
    check_seal(results)
    check("", results, RESULTS)
    _check_numbers(results)
    confusion = results.get("confusion")
    if confusion is not None:
        classes = results.get("classes") or confusion
        if {len(classes)} != {len(confusion), *map(len, confusion)} or min(map(min, confusion)) < 0:
            raise ValueError(f"confusion must be {len(classes)} rows of {len(classes)} counts")
        if max(map(max, confusion)) > MOST_IMAGES:
            raise ValueError(f"confusion has a count above {MOST_IMAGES:g}")
    for layer, scores in (results.get("layers") or {}).items():
        for head, score in scores.items():
            _check_number(f"layers.{layer}.{head}", score, 1)


def check_epoch(record: Any) -> None:
    """Checks a line of metrics.jsonl.

    Raises:
        ValueError: as `check_content`.
    """
    check("", record, {"epoch": int, "train_loss": float | None, "train_top1": float | None,
                       "layers": dict[str, dict[str, Any]] | None})  # fmt: skip
    for layer, values in (record.get("layers") or {}).items():
        check(f"layers.{layer}.update", values.get("update"), float | None)


def _check_numbers(values: Mapping[str, Any]) -> None:
    for name in SHARES:
        _check_number(name, values.get(name), 1)
    for name in COUNTS:
        _check_number(name, values.get(name))


def _check_number(name: str, value: float | None, high: float = float("inf")) -> None:
    if value is not None and not 0 <= value <= high:
        raise ValueError(f"{name} must be between 0 and {high:g}, not {value}")
