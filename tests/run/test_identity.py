"""A stage's files belong together: weights of another stage, flipped bits and edited files are found, never used."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fasthebb_cli import cli
from tests.conftest import Ran

Command = Callable[..., Ran]
WORDS = ("label_fraction=0.2", "pretrain.epochs=1", "finetune.epochs=1")


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def unsealed(path: Path) -> None:
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}))


@pytest.mark.slow
def test_what_is_no_longer_what_a_stage_wrote_is_found(command: Command, tmp_path: Path) -> None:
    for seed in ("0", "1"):
        assert command("train", *WORDS, f"seed={seed}").code == 0
    ran = command("train", *WORDS)
    (learnt,) = [path for path in ran.directories("finetune") if "seed0" in path.name]
    (other,) = [path for path in ran.directories("finetune") if "seed1" in path.name]
    (measured,) = [path for path in ran.directories("evaluate") if "seed0" in path.name]
    model, results = learnt / "model.safetensors", learnt / "results.json"
    whole = {path: path.read_bytes() for path in (model, results, learnt / "fingerprint.json")}
    shutil.rmtree(measured)  # so that evaluation runs again
    damages: dict[str, tuple[Callable[[], object], str]] = {
        "another seed's weights": (lambda: shutil.copy(other / "model.safetensors", model), "is not what its stage"),
        "a flipped bit": (lambda: flip(model), "is not what its stage wrote"),
        "edited results": (lambda: edit(results, top1=0.99), "it was changed after its stage had finished"),
        "results without their seal": (lambda: unsealed(results), "it was changed after its stage had finished"),
        "other settings": (lambda: edit(learnt / "fingerprint.json", seed=7), "is of other settings or damaged"),
        "another stage's results": (lambda: shutil.copy(other / "results.json", results), "of other settings"),
    }
    for name, (damage, message) in damages.items():
        damage()
        ran = command("train", *WORDS)
        assert ran.code == 2, name
        assert ran.err.count("\n") == 1
        assert message in ran.err
        assert str(learnt) in ran.err
        if "weights" in name or "bit" in name:
            ran = command("finetune", f"init_from={learnt}", *WORDS, "finetune.lr=0.1")
            assert (ran.code, message in ran.err) == (2, True)
        for path, content in whole.items():
            path.write_bytes(content)
    assert command("train", *WORDS).code == 0
    model.unlink()
    ran = command("train", *WORDS)
    assert ran.code == 0
    assert f"{model} is gone; delete the directory to make it again" in "".join(ran.out.split("\n"))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "changes"), [("evaluate", {"rule.name": "none"}), ("finetune", {"seed": 5})])
def test_an_overview_does_not_believe_settings_that_were_edited(
    command: Command, capsys: pytest.CaptureFixture[str], kind: str, changes: dict[str, object]
) -> None:
    ran = command("train", *WORDS)
    (directory,) = ran.directories(kind)
    edit(directory / "fingerprint.json", **changes)
    capsys.readouterr()
    assert cli.run(["runs", str(ran.runs)]) == 0
    out = "".join(capsys.readouterr().out.split("\n"))
    assert "damaged: fingerprint.json: it was changed after its stage had begun" in out


@pytest.mark.slow
def test_an_unfinished_stage_whose_settings_were_edited_is_not_gone_on_with(command: Command) -> None:
    (directory,) = command("pretrain", *WORDS).directories("pretrain")
    (directory / "results.json").unlink()
    edit(directory / "fingerprint.json", seed=7)
    ran = command("pretrain", *WORDS)
    assert ran.code == 2
    assert "fingerprint.json is of other settings or damaged" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize("time", [1, 4_000_000_000], ids=["long ago", "in the future"])
def test_force_starts_over_whatever_the_clock_says(command: Command, time: int) -> None:
    (directory,) = command("pretrain", *WORDS).directories("pretrain")
    for path in directory.iterdir():
        os.utime(path, (time, time))
    ran = command("pretrain", *WORDS, "force=true")
    assert ran.code == 0, ran.err
    assert "finished before" not in ran.out
    assert "finished before" in command("pretrain", *WORDS).out


@pytest.mark.slow
def test_cells_of_a_sweep_with_force_start_a_shared_stage_over_once(command: Command) -> None:
    words = [*WORDS[1:], "label_fraction=0.1,0.2", "-m"]
    assert command("train", *words).code == 0
    ran = command("train", *words, "force=true")
    assert ran.code == 0, ran.err
    assert ran.out.count("pretrain epoch 1/1") == 1
