"""Killed or stopped at any moment and started again, a run ends in the same bits, with every epoch once in its log."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hydra.core.global_hydra import GlobalHydra

from fasthebb_cli import cli
from fasthebb_cli.compute import processes
from fasthebb_cli.compute.signals import STOPPED
from fasthebb_cli.stages.scores import add_batch
from tests.conftest import Ran
from tests.data.images import class_folders
from tests.disturbed import events, kill_at_random_moments, outcome, start, start_anew, undisturbed, words
from tests.lives import Moment
from tests.many import together

pytestmark = pytest.mark.xdist_group("processes")

STAGES = ("pretrain", "finetune", "probe", "evaluate")
ALL = ("stages=[pretrain,finetune,probe,evaluate]", "probe.methods=[knn]")
SHORT = ("pretrain.epochs=1", "finetune.epochs=1")


@pytest.mark.marathon
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("size", "moments"), [(1, 50), (2, 20)])
def test_kill_9_at_random_moments_over_all_stages_loses_nothing(tmp_path: Path, size: int, moments: int) -> None:
    kills = {"start": 5, "pretrain": 17, "finetune": 17, "probe": 5, "evaluate": 6}
    kills = {stage: moments * wanted // 50 for stage, wanted in kills.items()}
    hit = kill_at_random_moments(tmp_path / "killed", kills, *ALL, size=size)
    assert hit.total() >= sum(kills.values())
    assert all(hit[stage] >= wanted for stage, wanted in kills.items())


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.marathon)])
def test_the_command_itself_is_killed_and_goes_on(tmp_path: Path, size: int) -> None:
    """Of several processes one; torchrun ends, and the others, unless it ends them before they notice."""
    killed = Moment(7, "pretrain", rank=size - 1)
    code, text = start_anew(tmp_path / "runs", 0.0, *SHORT, moment=killed, size=size).wait()
    assert code == (1 if size > 1 else -signal.SIGKILL)
    assert size > 1 or "another process of this run ended" not in text
    code, text = start_anew(tmp_path / "runs", 1000, *SHORT, size=size).wait()
    assert code == 0, text
    assert "resumed at epoch 1, step 7" in text
    assert outcome(tmp_path / "runs") == undisturbed(*SHORT, size=size)


@contextmanager
def stop_at(number: int) -> Iterator[None]:
    """One process of the run asks for a stop at its decision of that number."""
    asked, decide = 0, processes.decide

    def asking(**settings: bool) -> processes.Decision:
        nonlocal asked
        if "stop" in settings:
            asked += 1
            if asked == number and processes.rank() == number % processes.count():
                settings["stop"] = True
        return decide(**settings)

    with patch.object(processes, "decide", asking):
        yield


def ran(out: Path, *settings: str) -> int:
    GlobalHydra.instance().clear()
    code = cli.run(words(out, *settings))
    GlobalHydra.instance().clear()
    return code


def stopped_everywhere(folder: Path, stages: Collection[str], *settings: str) -> dict[str, int]:
    """Stops a run at each decision of some of its stages, each time in a run of its own which then goes on to the end
    of that stage.

    Returns:
        How many decisions each stage had.
    """
    once, done = folder / "once", dict.fromkeys(STAGES, 0)
    assert ran(once, *settings) == 0
    expected = outcome(once)
    ended: list[str] = []  # stages
    for stage in STAGES:  # the last decision of a stage keeps its results, and nothing follows
        before = [path.name for name in ended for path in once.glob(f"*-{name}-*")]
        if not list(once.glob(f"*-{stage}-*")):
            continue
        ended.append(stage)
        if stage not in stages:
            continue
        until = [word for word in settings if not word.startswith("stages=")] + [f"stages=[{','.join(ended)}]"]
        for number in count(1):
            out = folder / f"{stage} {number}"
            if processes.is_first():
                for name in before:
                    shutil.copytree(once / name, out / name)
            processes.meet()
            with stop_at(number):
                code = ran(out, *until)
            if code == 0:  # it had fewer decisions
                break
            done[stage] = number
            assert code == STOPPED
            assert ran(out, *until) == 0
            found = outcome(out)
            assert any(f"-{stage}-" in name for name in found)
            assert found == {name: expected[name] for name in found}, f"{stage}, decision {number}"
    return done


# What keeps other state in a checkpoint: whitenings and the best epoch, a decoder, moments, two learners, class means
MORE_SETTINGS: list[tuple[tuple[str, ...], dict[str, int]]] = [
    (("rule=swta", "finetune.select=best", "finetune.augment=light"), {"pretrain": 8, "finetune": 8}),
    (("rule=kmeans", "model=triangle"), {"pretrain": 8, "finetune": 6}),
    (("rule=vae",), {"pretrain": 8}),
    (("rule=hpca_adaptive", "pretrain.layer_by_layer=true"), {"pretrain": 8}),
    (("rule=hpca_adaptive", "finetune.by_rule=[conv2,fc5]", "finetune.hidden=7"), {"finetune": 6}),
    (("finetune=hebbian", "finetune.augment=shift", "finetune.select=best", "finetune.patience=2"), {"finetune": 8}),
]
LARGE_BATCHES = ("pretrain.batch_size=400", "finetune.batch_size=100", "evaluate.batch_size=400")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("settings", "least"),
    [
        (ALL, {"pretrain": 8, "finetune": 6, "probe": 2, "evaluate": 3}),
        *(pytest.param(words, least, marks=pytest.mark.marathon) for words, least in MORE_SETTINGS),
    ],
)
def test_stopped_at_every_decision_it_ends_in_the_same_bits(
    tmp_path: Path, settings: tuple[str, ...], least: dict[str, int]
) -> None:
    done = stopped_everywhere(tmp_path, least, *LARGE_BATCHES, *settings)
    assert all(done[stage] >= wanted for stage, wanted in least.items()), done


@pytest.mark.marathon
@pytest.mark.timeout(1200)
def test_so_do_two_processes() -> None:
    one, two = together("tests.run.test_resume:both_stopped_everywhere", 2)
    assert one == two
    assert one["pretrain"] >= 4
    assert one["finetune"] >= 3


def both_stopped_everywhere() -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        return stopped_everywhere(Path(processes.from_first(lambda: folder)), STAGES, *LARGE_BATCHES, *SHORT, *ALL)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    moment = Moment(7, "pretrain", signal=number)
    life = start(tmp_path / "runs", 1000, "stages=[pretrain]", moment=moment)
    assert life.wait() == STOPPED, life.text()
    assert "stopped and saved at epoch 1, step 8 of" in life.text()
    assert "the same command goes on" in life.text()
    assert "Traceback" not in life.text()
    assert list(tmp_path.glob("runs/*/checkpoint.pt"))


@pytest.mark.slow
def test_a_stop_while_validation_images_are_looked_at_saves_and_goes_on_to_the_same_bits(
    command: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("rule=none", "finetune.select=best", "finetune.epochs=3", "label_fraction=0.2", "stages=[finetune]")
    looked_at = 0

    def stop(*arguments: Any) -> Any:
        nonlocal looked_at
        looked_at += 1
        if looked_at == 7:  # in the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return add_batch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(import_module("fasthebb_cli.stages.scores"), "add_batch", stop)
        ran = command("train", *settings)
    assert ran.code == 130, ran.err
    assert "stopped and saved at epoch 2, its validation of finetune" in ran.err
    assert looked_at == 7
    assert command("train", *settings).code == 0
    once = command("train", *settings, f"out={tmp_path / 'once'}")
    assert once.code == 0
    assert outcome(tmp_path / "runs") == outcome(tmp_path / "once")


def files(tmp_path: Path, workers: int) -> tuple[str, ...]:
    """Settings of a pre-training on files that processes of their own decode."""
    class_folders(tmp_path / "photos/train", {"cats": 40, "dogs": 40})
    class_folders(tmp_path / "photos/test", {"cats": 4, "dogs": 4})
    return (
        "dataset=image_folder",
        f"dataset.root={tmp_path / 'photos'}",
        "dataset.size=32",
        "dataset.in_memory=false",
        f"gpu.workers={workers}",
        "pretrain.batch_size=4",
        "stages=[pretrain]",
    )


@pytest.mark.slow
def test_a_signal_to_every_process_as_slurm_sends_it_spares_those_that_decode(tmp_path: Path) -> None:
    settings = files(tmp_path, workers=2)
    for number, signalled in enumerate((signal.SIGUSR1, signal.SIGTERM), 5):
        moment = Moment(number, "pretrain", signal=signalled, everyone=True)
        life = start(tmp_path / "runs", 1000, *settings, moment=moment)
        assert life.wait() == STOPPED, life.text()
        assert "stopped and saved at epoch 1, step" in life.text()
        assert "Traceback" not in life.text()
    assert "resumed at epoch 1, step 7" in life.text()


@pytest.mark.slow
def test_processes_that_decode_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    run = start_anew(tmp_path / "runs", 1000, *files(tmp_path, workers=1), moment=Moment(5, "pretrain", signal=None))
    run.reached()
    assert len(run.numbers()) >= 3, "the run, its fork server and the one that decodes"
    run.process.kill()
    run.wait()  # all that hold its output have ended
    assert not run.numbers()


@pytest.mark.slow
def test_a_signal_outside_of_a_stage_ends_the_run_at_once(tmp_path: Path) -> None:
    """On the way to the first stage, and from one to the next."""
    everything, out = events(*SHORT), tmp_path / "runs"
    for stage, part in (("start", 0.01), ("start", 0.3), ("start", 0.9), ("pretrain", 0.97), ("finetune", 0.97)):
        moment = Moment(int(part * everything[stage]), stage, calls=True, signal=signal.SIGUSR1)
        life = start(out, 0.0, *SHORT, moment=moment)
        assert life.wait() == STOPPED, life.text()
        assert "Traceback" not in life.text()
    life = start(out, 1000, *SHORT)
    assert life.wait() == 0, life.text()
    assert outcome(out) == undisturbed(*SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("calls", [1000, 300_000])
def test_a_signal_while_python_imports_ends_the_run_at_once(tmp_path: Path, calls: int) -> None:
    moment = Moment(calls, calls=True, signal=signal.SIGUSR1)
    code, text = start_anew(tmp_path / "runs", 1000, *SHORT, moment=moment).wait()
    assert code == STOPPED
    assert text == "stopped; the same command goes on\n"
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    life = start(tmp_path / "damaged", 0.0, "stages=[pretrain]", moment=Moment(7, "pretrain"))
    assert life.wait() == -signal.SIGKILL, life.text()
    (checkpoint,) = tmp_path.glob("damaged/*/checkpoint.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    again = start(tmp_path / "damaged", 1000, "stages=[pretrain]")
    assert again.wait() == 0, again.text()
    assert f"{checkpoint} is damaged" in again.text()
    assert "resumed at epoch 1, step 6" in again.text()
    assert outcome(tmp_path / "damaged") == undisturbed("stages=[pretrain]")
