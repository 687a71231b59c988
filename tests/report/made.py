"""Directories of runs, made without training: a few JSON files per stage, as a run writes them."""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from fasthebb.stage_files import seal_of
from fasthebb_cli import cli
from fasthebb_cli.run.directory import write_json, write_text

LABELS_OF_ALL = 3000
CHOSEN = {"chosen": {"classifier": "kernel", "sharpness": 3.0, "ridge": 0.03}, "expected_top1": 0.9}
# A PNG of one grey pixel
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c636800000082008177cd72b60000000049454e44ae426082"
)


def make_stage(runs: Path, kind: str, content: dict[str, Any], results: dict[str, Any]) -> tuple[Path, str]:
    """A finished stage's directory and its fingerprint; `results` are added to the results that all stages have."""
    content = {"stage": kind, "version": 3, "kind": kind, "gpu.precision": "fp32", "dataset.images": "ab",
               "dataset.size": 32, "model.name": "conv6", f"{kind}.kind": kind} | content  # fmt: skip
    content.setdefault("dataset.name", "digits")
    fingerprint = blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
    directory = runs / f"{kind}-{fingerprint[:8]}"
    write_json(directory / "fingerprint.json", content)
    everything = {
        "stage": kind, "kind": kind, "dataset": content["dataset.name"], "model": "conv6",
        "rule": content["rule.name"], "label_fraction": 0.1, "seed": content["seed"], "top1": None, "top5": None,
        "loss": None, "samples": 1000, "labels_train": 0, "labels_validation": 0, "epochs": 2, "backward_passes": 0,
        "seconds": 10.0,
        "images_per_second": 100.0, "device": "cpu, fp32, 1 threads", "fingerprint": fingerprint,
        "versions": {"fasthebb": "0.1.0", "git": "abc1234"}, "finished": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    everything |= results
    if {"balanced_top1", "weights"} & results.keys():  # as young as seals
        everything["seal"] = seal_of(everything)
    write_json(directory / "results.json", everything)
    return directory, fingerprint


def make_run(
    runs: Path, rule: str, fraction: float, seed: int, top1: float,
    finetune: dict[str, Any] | None = None, *, closed_form: bool = False,
    content: dict[str, Any] | None = None, **evaluated: Any,
) -> Path:  # fmt: skip
    """Pre-training unless the rule is none, fine-tuning and evaluation; returns the directory of the evaluation.

    Fine-tuning is by backprop, with 20 epochs, or in closed form.

    Args:
        content: of both stages that read labels.
    """
    shared = {"seed": seed, "rule.name": rule, "rule.whitening": 0.1 if rule == "swta" else None}
    previous = None
    if rule != "none":
        directory, previous = make_stage(
            runs, "pretrain", shared | {"previous": None, "pretrain.epochs": 2, "pretrain.lr": 0.1}, {"seconds": 60.0}
        )
        layers = {"conv1.0": {"update": 0.1, "dead": 0}, "conv2.0": {"update": 0.2, "dead": 0}}
        write_text(directory / "metrics.jsonl", "".join(
            json.dumps({"epoch": epoch, "layers": layers}) + "\n" for epoch in (1, 2)))  # fmt: skip
        (directory / "filters.png").write_bytes(PNG)
    labels = {"label_fraction": fraction, "labels_train": round(LABELS_OF_ALL * fraction)}
    settings = {"stage": "finetune", "previous": previous, "label_fraction": fraction}
    settings["dataset.train"] = f"3000 images {seed:016x}"
    if closed_form:
        kind, told = "closed_form", CHOSEN | {"backward_passes": 0}
        settings["closed_form.pool"] = 4
    else:
        kind, told = "finetune", {"backward_passes": 20 * labels["labels_train"]}
        settings |= {"finetune.layer": None, "finetune.lr": 0.003}
    directory, previous = make_stage(runs, kind, shared | settings | (finetune or {}) | (content or {}), labels | told)
    write_text(directory / "metrics.jsonl", '{"epoch": 1, "train_loss": 2.0, "train_top1": 0.5}\n'
                                            '{"epoch": 2, "train_loss": 1.0, "train_top1": 0.75}\n')  # fmt: skip
    (directory / "filters.png").write_bytes(PNG)
    measured = {"top1": top1, "top5": 0.99, "loss": 0.5, "split": "test"} | labels | evaluated
    own = {"previous": previous, "evaluate.split": measured["split"], "dataset.test": "1000 images 00ff"}
    return make_stage(runs, "evaluate", shared | own | (content or {}), measured)[0]


def make_grid(runs: Path) -> None:
    """hpca and none on two fractions and three seeds; hpca lacks seed 2 at the larger fraction."""
    for seed, (learnt, scratch) in enumerate([(0.80, 0.70), (0.82, 0.74), (0.84, 0.72)]):
        make_run(runs, "hpca", 0.01, seed, learnt)
        make_run(runs, "none", 0.01, seed, scratch)
    for seed, (learnt, scratch) in enumerate([(0.90, 0.93), (0.91, 0.93)]):
        make_run(runs, "hpca", 0.1, seed, learnt)
        make_run(runs, "none", 0.1, seed, scratch)
    make_run(runs, "none", 0.1, 2, 0.95)


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    capsys.readouterr()
    code = cli.run([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err
