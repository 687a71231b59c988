"""Steps that a GPU would replay: each launches the same operations, and the numbers are those without replay."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fasthebb import learner
from fasthebb_cli.compute import gradients
from fasthebb_cli.stages import task
from tests.checked import Checked
from tests.conftest import Ran
from tests.disturbed import outcome


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("rule=hpca", "finetune=gentle", "finetune.augment=light"),
        ("rule=vae", "model.width=0.05"),
        pytest.param(("rule=swta", "finetune.layer_lr={conv2:0}", "finetune.select=best"), marks=pytest.mark.marathon),
        pytest.param(("rule=hpca", "pretrain.teacher=true", "gpu.precision=bf16"), marks=pytest.mark.marathon),
        pytest.param(("rule=hpca", "pretrain.layer_by_layer=true", "finetune=frozen"), marks=pytest.mark.marathon),
        pytest.param(("rule=hpca", "gpu.micro_batch=20", "finetune=hebbian"), marks=pytest.mark.marathon),
    ],
)
def test_a_replayed_run_is_that_without(
    command: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    assert command("train", *words, f"out={tmp_path / 'plain'}").code == 0
    Checked.recorded = Checked.replayed = 0
    for module in (learner, gradients):
        monkeypatch.setattr(module, "Replay", Checked)
    monkeypatch.setattr(task, "replays", lambda *_: True)
    ran = command("train", *words, f"out={tmp_path / 'replayed'}")
    assert ran.code == 0, ran.err
    assert Checked.recorded >= 2
    assert Checked.replayed > 20
    assert outcome(tmp_path / "replayed") == outcome(tmp_path / "plain")
