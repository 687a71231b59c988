"""What a stage that fails says."""

import re
from collections.abc import Callable
from typing import NoReturn

import pytest
import torch

from fasthebb_cli.run import failure
from fasthebb_cli.settings.config import Config
from fasthebb_cli.stages import STAGES, Context
from tests.conftest import Ran

TINY = (
    "dataset=digits", "dataset.train_samples=32", "dataset.validation_samples=16", "dataset.test_samples=16",
    "gpu=cpu", "rule=none", "finetune.batch_size=16",
)  # fmt: skip
NARROW = ("model.width=0.03", "dataset.size=24")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words", "expected"),
    [
        ("pretrain", [*NARROW, "rule=hpca"], "lower pretrain.batch_size or model.width"),
        ("pretrain", [*NARROW, "rule=random"], "lower model.width"),
        ("finetune", NARROW, "lower finetune.batch_size or model.width"),
        ("finetune", ["model=torchvision:shufflenet_v2_x0_5"], "lower finetune.batch_size or dataset.size"),
        (
            "components",
            [*NARROW, "finetune=closed_form"],
            "lower finetune.batch_size, finetune.pool or model.width",
        ),
        (
            "closed_form",
            [*NARROW, "finetune=closed_form"],
            "lower finetune.batch_size, finetune.components, finetune.kernel_rows, finetune.landmarks, finetune.pool "
            "or model.width",
        ),
        (
            "finetune",
            [*NARROW, "+finetune@extra.head=frozen", "stages=[head]"],
            "lower extra.head.batch_size or model.width",
        ),
        ("probe", [*NARROW, "stages=[probe]"], "lower probe.batch_size, probe.pool or model.width"),
        (
            "evaluate",
            [*NARROW, "finetune.epochs=1", "stages=[finetune,evaluate]"],
            "lower evaluate.batch_size or model.width",
        ),
    ],
)
def test_out_of_memory_names_keys_that_there_are(
    command: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, kind: str, words: list[str], expected: str
) -> None:
    asked: list[Config] = []

    def full(context: Context) -> NoReturn:
        asked.append(context.config)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setitem(STAGES, kind, full)
    ran = command("train", *TINY, *words, small=False)
    assert ran.code == 1
    assert ran.err.endswith(f": out of memory; {expected}\n"), ran.err
    (config,) = asked
    groups = {"dataset": config.dataset, "model": config.model} | config.settings
    for key in re.findall(r"[a-z_]+(?:\.[a-z_]+)+", expected):
        group, _, name = key.removeprefix("extra.").partition(".")
        assert hasattr(groups[group], name), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words", "helps"),
    [
        ("pretrain", ["rule=hpca"], True),
        ("pretrain", ["rule=random"], False),
        ("finetune", [], True),
        ("closed_form", ["finetune=closed_form"], False),
    ],
)
def test_graphs_are_named_where_steps_are_recorded(
    command: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, kind: str, words: list[str], *, helps: bool
) -> None:
    def full(context: Context) -> NoReturn:
        raise torch.OutOfMemoryError

    monkeypatch.setitem(STAGES, kind, full)
    monkeypatch.setattr(failure, "replays", lambda *_: True)  # as on a GPU
    ran = command("train", *TINY, *NARROW, *words, small=False)
    assert ran.code == 1
    assert ran.err.endswith("model.width, or set gpu.graph=false\n") == helps, ran.err
