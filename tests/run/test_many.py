"""The command under torchrun: two processes give what one gives, write one directory, stop and fail together."""

import json
import re
import signal
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fasthebb.rules import Terms, hpca
from fasthebb_cli.compute import processes
from fasthebb_cli.compute.signals import STOPPED, stops_raise
from fasthebb_cli.data.collection import Collection, from_arrays
from fasthebb_cli.errors import Interrupted, RunError
from fasthebb_cli.settings.config import DatasetConfig
from tests.conftest import SMALL
from tests.data.images import photographs
from tests.fasthebb.test_many import same
from tests.lives import Life, Moment, Started, command, environments
from tests.many import together

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


def words(out: Path, verb: str, *arguments: str) -> list[str]:
    given = {word.partition("=")[0] for word in arguments}
    unfit = "finetune.epochs" if "finetune=closed_form" in arguments else "none"
    small = [word for word in SMALL if word.partition("=")[0] not in given | {unfit}]
    return [verb, *small, "model.dropout=0", f"out={out}", *arguments]


# Sums over a pass in closed form, of the features of all images and of the rows of many labelled ones
CLOSED = ("train", "rule=random", "finetune=closed_form", "finetune.batch_size=150")
SUMMED = ("finetune.kernel_rows=100", "finetune.landmarks=100")
VARIABLES = {"FASTHEBB_SAVE_SECONDS": "1000", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def start(out: Path, verb: str, *arguments: str, size: int = 2, moment: Moment | None = None) -> Life:
    target = command(words(out, verb, *arguments), moment)
    return Life(target, out.with_suffix(".log"), size=size, variables=VARIABLES)


def finished(life: Life, code: int = 0) -> str:
    assert life.wait() == code, life.text()
    return life.text()


def weights(out: Path, stage: str) -> dict[str, Tensor]:
    (path,) = out.glob(f"*-{stage}-*/model.safetensors")
    return load_file(path)


def results(out: Path, stage: str) -> dict[str, object]:
    (path,) = out.glob(f"*-{stage}-*/results.json")
    found: dict[str, object] = json.loads(path.read_text())
    return found


def test_a_process_whose_peers_never_come_says_so_and_ends(tmp_path: Path) -> None:
    """It is the first of two under torchrun."""
    told = VARIABLES | environments(2)[0] | {"FASTHEBB_JOIN_SECONDS": "0.5"}
    life = Life(command(words(tmp_path / "runs", "pretrain")), tmp_path / "log", variables=told)
    text = finished(life, 1)
    assert "error: not all 2 processes of this run came within 0.5 s (FASTHEBB_JOIN_SECONDS)" in text
    assert "Traceback" not in text


def test_two_processes_train_an_autoencoder_as_one(tmp_path: Path) -> None:
    """Decoder and noise of its own in each would move the loss by 0.2 %. (Adam would make signs of rounding a step.)"""
    settings = ("rule=vae", "pretrain.batch_size=100", "pretrain.optimizer=SGD", "pretrain.lr=1e-5")
    for size, out in ((2, "two"), (1, "one")):
        finished(start(tmp_path / out, "pretrain", *settings, size=size))
    one, two = (results(tmp_path / out, "pretrain")["loss"] for out in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4)


def test_two_processes_are_as_one(tmp_path: Path) -> None:
    stages = "stages=[pretrain,finetune,probe,evaluate]"
    settings = ("train", stages, "probe.layers=[conv1,conv2]", "label_fraction=0.2", "pretrain.augment=light")
    code, text = Started(words(tmp_path / "two", *settings), size=2, variables=VARIABLES).wait()  # as a user does
    assert code == 0, text
    finished(start(tmp_path / "one", *settings, size=1))
    assert "2 processes" in text
    assert text.count("pretrain: done") == 1, "only the first process speaks"
    one, two = weights(tmp_path / "one", "pretrain"), weights(tmp_path / "two", "pretrain")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-3)
    for stage in ("finetune", "probe", "evaluate"):
        single, double = results(tmp_path / "one", stage), results(tmp_path / "two", stage)
        for key in ("samples", "labels_train", "labels_validation", "fingerprint"):
            assert double[key] == single[key]
    single, double = results(tmp_path / "one", "evaluate"), results(tmp_path / "two", "evaluate")
    assert sum(map(sum, double["confusion"])) == single["samples"]  # type: ignore[call-overload]
    assert double["top1"] == pytest.approx(single["top1"], abs=0.02)
    assert double["loss"] == pytest.approx(single["loss"], rel=0.05)
    for directory in (tmp_path / "two").glob("*-*"):
        assert len(list(directory.glob("events.out.tfevents.*"))) == 1
    assert "cached" in finished(start(tmp_path / "two", *settings))


def test_two_processes_learn_from_photographs_as_one(tmp_path: Path) -> None:
    """Files that each decodes for its part. (tanh, since what rounding lifts over relu's zero would be no rounding.)"""
    counts = {"train": 25, "test": 12}
    photographs(tmp_path / "photos", {f"{part}/{name}": count for part, count in counts.items() for name in "abc"})
    dataset = (
        "dataset=image_folder",
        f"dataset.root={tmp_path / 'photos'}",
        "dataset.size=32",
        "dataset.in_memory=false",
    )
    settings = (
        *dataset,
        "model.width=0.125",
        "model.activation=tanh",
        "pretrain.batch_size=25",
        "pretrain.augment=light",
    )
    learning = (
        "finetune=backprop",
        "finetune.batch_size=25",
        "finetune.lr=0.01",
        "finetune.epochs=8",
        "evaluate.batch_size=25",
    )
    for size, out in ((2, "two"), (1, "one")):
        finished(start(tmp_path / out, "train", *settings, *learning, size=size))
    for stage in ("pretrain", "finetune"):
        same(weights(tmp_path / "two", stage), weights(tmp_path / "one", stage), 1e-4)
    one, two = (results(tmp_path / out, "evaluate") for out in ("one", "two"))
    assert two["confusion"] == one["confusion"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)


@pytest.mark.parametrize("words", [("finetune=hebbian",), ("rule=swta", "finetune.by_rule=[conv1,conv3]")])
def test_classifiers_and_layers_by_rule_learn_as_one(tmp_path: Path, words: tuple[str, ...]) -> None:
    settings = ("train", *words, "stages=[pretrain,finetune]", "label_fraction=0.2")
    finished(start(tmp_path / "two", *settings))
    finished(start(tmp_path / "one", *settings, size=1))
    one, two = weights(tmp_path / "one", "finetune"), weights(tmp_path / "two", "finetune")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-2, atol=5e-3)


def test_two_processes_whiten_patches_alike_and_find_their_centres_as_one(tmp_path: Path) -> None:
    for size, out in ((2, "two"), (1, "one")):
        finished(start(tmp_path / out, "pretrain", "model=triangle", "rule=kmeans", "pretrain.epochs=1", size=size))
    one, two = weights(tmp_path / "one", "pretrain"), weights(tmp_path / "two", "pretrain")
    assert torch.equal(two["conv1.0.matrix"], one["conv1.0.matrix"])
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize(
    ("size", "stage", "settings", "stops", "resumes"),
    [
        (2, "pretrain", ("pretrain", "rule=hpca_adaptive"), "1, step 6", "1, step 7"),
        (3, "finetune", ("train", "rule=none", "stages=[finetune]", "label_fraction=0.2"), "2, step 1", "2, step 2"),
        (3, "components", CLOSED, "1, step 6", "1, step 7"),
        (2, "finetune", (*CLOSED, *SUMMED), "2, step 5", "2, step 6"),
    ],
)
def test_a_signal_to_one_stops_all_and_they_go_on_to_the_same_bits(
    tmp_path: Path, size: int, stage: str, settings: tuple[str, ...], stops: str, resumes: str
) -> None:
    finished(start(tmp_path / "once", *settings, size=size))
    kind = "closed_form" if SUMMED[0] in settings else stage
    moment = Moment(12 if kind == "closed_form" else 5, kind, signal=signal.SIGTERM, rank=size - 1)
    text = finished(start(tmp_path / "stopped", *settings, size=size, moment=moment), STOPPED)
    assert text.count(f"stopped and saved at epoch {stops}") == 1, text
    assert list((tmp_path / "stopped").glob("*/checkpoint*"))
    assert f"resumed at epoch {resumes}" in finished(start(tmp_path / "stopped", *settings, size=size))
    once, again = weights(tmp_path / "once", stage), weights(tmp_path / "stopped", stage)
    assert all(torch.equal(again[name], value) for name, value in once.items())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_takes_the_others_along(tmp_path: Path, rank: int) -> None:
    life = start(tmp_path / "runs", "pretrain", moment=Moment(5, "pretrain", rank=rank))
    assert "another process of this run ended" in finished(life, 1)


@pytest.mark.parametrize(("rank", "expected"), [(0, "error: rule.name="), (1, "error: process 1: rule.name=")])
def test_a_process_that_fails_alone_says_why_and_ends_the_run(tmp_path: Path, rank: int, expected: str) -> None:
    rule = ("rule=own", "rule.name=tests.run.test_many:faulty", f"+rule.options.rank={rank}")
    text = finished(start(tmp_path / "runs", "pretrain", *rule, "pretrain.lr=0.01"), 1)
    assert re.search(f"{expected}.*RunError: one process alone", text), text


def test_processes_that_see_other_images_are_an_error_before_anything_runs(tmp_path: Path) -> None:
    dataset = ("dataset=own", "dataset.name=tests.run.test_many:uneven", "dataset.size=32")
    text = finished(start(tmp_path / "runs", "pretrain", *dataset), 1)
    assert "error: process 1: has other settings or images than the first process" in text
    assert not list(tmp_path.glob("runs/*/config.yaml"))


def test_a_sweep_goes_on_after_a_cell_that_fails_everywhere(tmp_path: Path) -> None:
    text = finished(start(tmp_path / "runs", "pretrain", "-m", "pretrain.lr=1e9,0.1"), 1)
    assert "1 of 2 cells failed" in text
    assert text.count("error:") == 1
    assert len(list(tmp_path.glob("runs/*-pretrain-*/model.safetensors"))) == 1


def test_a_stop_of_the_first_while_the_others_wait_for_it_stops_all() -> None:
    assert together("tests.run.test_many:stopped_first", 2) == ["the start", "the start"]


def stopped_first() -> str:
    """Where the process is stopped."""

    @stops_raise()
    def make() -> None:
        signal.raise_signal(signal.SIGUSR1)
        raise AssertionError("it goes on")

    try:
        processes.from_first(make)
    except Interrupted as stopped:
        return str(stopped)
    return "nowhere"


def uneven(config: DatasetConfig) -> Collection:
    """Images that are others in the second process."""
    images = torch.full((40, 3, config.size, config.size), processes.rank(), dtype=torch.uint8)
    return from_arrays({"train": (images, torch.arange(40) % 2)}, ("a", "b"), config.size)


def faulty(y_NGK: Tensor, *, rank: int = 0) -> Terms:
    """A rule that fails in one process of two."""
    if processes.rank() == rank and processes.count() == 2:
        processes.LAST_WORD = timedelta(seconds=1)  # the other waits for numbers, so that nobody will listen
        raise RunError("one process alone can't")
    return hpca(y_NGK)
