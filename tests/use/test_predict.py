"""`fasthebb predict`: its table agrees with `evaluate`; damaged images are left out; bad input is refused."""

import csv
import fcntl
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fasthebb.model_file import load_model_and_card, read_model
from fasthebb_cli.console.formats import make_console
from fasthebb_cli.console.progress import FolderProgress
from fasthebb_cli.console.view import View
from fasthebb_cli.errors import InputError
from fasthebb_cli.run.directory import replacing
from fasthebb_cli.use.images import load_images
from fasthebb_cli.use.passes import stoppable
from tests.conftest import Ran
from tests.data.images import save
from tests.use.conftest import TEST, Taught

pytestmark = pytest.mark.xdist_group("taught")  # they share a model

Command = Callable[..., Ran]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def predict(command: Command, *words: object) -> Ran:
    return command("predict", *map(str, words), "device=cpu", small=False)


def test_it_is_as_often_right_as_evaluate_says(command: Command, taught: Taught, tmp_path: Path) -> None:
    out = tmp_path / "there" / "predictions.csv"
    ran = predict(command, taught.evaluate, taught.test, f"out={out}")  # the model is in the stage before
    assert ran.code == 0, ran.err
    rows = rows_of(out)
    assert list(rows[0]) == ["path", "class", "probability"]
    paths = [row["path"] for row in rows]
    assert len(paths) == TEST
    assert paths == sorted(path.relative_to(taught.test).as_posix() for path in taught.test.rglob("*.png"))
    right = sum(row["path"].split("/")[0] == row["class"] for row in rows)
    measured = json.loads((taught.evaluate / "results.json").read_text())
    assert measured["samples"] == TEST
    assert right / TEST == pytest.approx(measured["top1"], abs=1e-9)
    assert right / TEST > 0.2  # chance is 0.1
    assert f"{TEST} images in " in ran.out
    assert f"predictions are in {out}" in ran.out
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_the_python_way_gives_the_same_probabilities(command: Command, taught: Taught, tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    assert predict(command, taught.finetune, taught.test, f"out={out}").code == 0
    rows = rows_of(out)[:7]
    network, card = load_model_and_card(taught.finetune)
    with torch.no_grad():
        best = network(load_images([taught.test / row["path"] for row in rows], card)).softmax(1).max(1)
    assert [card.classes[k] for k in best.indices.tolist()] == [row["class"] for row in rows]
    assert best.values.tolist() == pytest.approx([float(row["probability"]) for row in rows], abs=2e-6)


@pytest.mark.parametrize("words", [["batch_size=1"], ["batch_size=7", "workers=2"]], ids=str)
def test_it_depends_on_neither_batches_nor_workers(
    command: Command, taught: Taught, tmp_path: Path, words: list[str]
) -> None:
    tables = []
    for k, extra in enumerate(([], words)):
        assert predict(command, taught.finetune, taught.test, f"out={tmp_path / str(k)}.csv", *extra).code == 0
        tables.append(rows_of(tmp_path / f"{k}.csv"))
    assert [(row["path"], row["class"]) for row in tables[0]] == [(row["path"], row["class"]) for row in tables[1]]
    assert [float(row["probability"]) for row in tables[0]] == pytest.approx(
        [float(row["probability"]) for row in tables[1]], abs=3e-6
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_files_are_named_and_left_out(command: Command, taught: Taught, tmp_path: Path, workers: int) -> None:
    photos = tmp_path / "photos"
    for k, name in enumerate(["b.png", "a/deep/er.jpg", 'comma, quote".png']):
        save(photos / name, k, (20, 12))
    (photos / "cut.png").write_bytes((photos / "b.png").read_bytes()[:100])
    (photos / "text.JPG").write_text("no image")
    (photos / "notes.txt").write_text("not looked at")
    ran = predict(command, taught.finetune, photos, f"out={tmp_path / 'p.csv'}", f"workers={workers}", "batch_size=2")
    assert ran.code == 0, ran.err
    assert [row["path"] for row in rows_of(tmp_path / "p.csv")] == ["a/deep/er.jpg", "b.png", 'comma, quote".png']
    assert f"warning: {photos / 'cut.png'}: can't be read as an image" in ran.out
    assert f"warning: {photos / 'text.JPG'}: can't be read as an image" in ran.out
    assert "2 of 5 files can't be read and were left out" in ran.out


def test_any_kind_of_image_is_read_as_training_reads_it(command: Command, taught: Taught, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    turned = Image.Exif()
    turned[0x0112] = 6
    picture = Image.open(save(tmp_path / "one.png", 1, (40, 24)))
    photos.mkdir()
    for mode, name in (("L", "grey.png"), ("CMYK", "cmyk.tif"), ("RGBA", "alpha.png"), ("P", "palette.gif")):
        picture.convert(mode).save(photos / name)
    picture.save(photos / "turned.jpg", exif=turned)
    ran = predict(command, taught.finetune, photos, f"out={tmp_path / 'p.csv'}")
    assert ran.code == 0, ran.err
    assert len(rows_of(tmp_path / "p.csv")) == 5
    assert "warning" not in ran.out


def test_one_file_and_a_model_file(command: Command, taught: Taught, tmp_path: Path) -> None:
    file = next(taught.test.rglob("*.png"))
    ran = predict(command, taught.finetune / "model.safetensors", file, f"out={tmp_path / 'one'}")
    assert ran.code == 0, ran.err
    assert "1 image in" in ran.out
    assert [row["path"] for row in rows_of(tmp_path / "one.csv")] == [file.name]


def test_a_name_that_is_not_utf_8_is_kept(command: Command, taught: Taught, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    try:
        (photos / os.fsdecode(b"caf\xe9.png")).write_bytes(next(taught.test.rglob("*.png")).read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert predict(command, taught.finetune, photos, f"out={tmp_path / 'p.csv'}").code == 0
    assert b"caf\xe9.png," in (tmp_path / "p.csv").read_bytes()


BAD_INPUT: dict[str, tuple[Callable[[Taught, Path], list[object]], str, int]] = {
    "no folder": (lambda taught, tmp: [taught.finetune, tmp / "nowhere"], "no such folder or image file", 2),
    "an empty folder": (lambda taught, tmp: [taught.finetune, tmp / "empty"], "no images in this folder", 2),
    "nothing readable": (lambda taught, tmp: [taught.finetune, tmp / "bad"], "not one file of 1 can be read", 2),
    "no model": (lambda taught, tmp: [tmp / "nowhere", taught.test], "no model at", 2),
    "a folder for a model": (lambda taught, tmp: [taught.test, taught.test], "no model at", 2),
    "a file for a model": (lambda taught, tmp: [tmp / "bad/x.png", taught.test], "is damaged or no safetensors", 2),
    "pre-trained only": (lambda taught, tmp: [taught.pretrain, taught.test], "fasthebb finetune init_from=MODEL", 2),
    "no folder given": (lambda taught, tmp: [taught.finetune], "usage: fasthebb predict MODEL FOLDER", 2),
    "unknown setting": (lambda taught, tmp: [taught.finetune, taught.test, "layer=x"], "unknown setting layer", 2),
    "a batch of none": (lambda taught, tmp: [taught.finetune, taught.test, "batch_size=0"], "batch_size must be at", 2),
    "no number": (lambda taught, tmp: [taught.finetune, taught.test, "workers=x"], "workers must be a whole", 2),
    "an empty out": (lambda taught, tmp: [taught.finetune, taught.test, "out="], "out is empty", 2),
    "a folder for out": (lambda taught, tmp: [taught.finetune, taught.test, f"out={tmp}"], "is a folder", 2),
    "a file for a folder": (
        lambda taught, tmp: [taught.finetune, taught.test, f"out={tmp / 'bad/x.png/p.csv'}"], "is a file, not", 2,
    ),
    "an out that can't be": (
        lambda taught, tmp: [taught.finetune, taught.test, f"out={tmp / ('x' * 300) / 'p.csv'}"], "can't write", 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing(command: Command, taught: Taught, tmp_path: Path, case: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.png").write_bytes(b"no image")
    words, expected, code = BAD_INPUT[case]
    before = sorted(tmp_path.rglob("*"))
    ran = predict(command, f"out={tmp_path / 'p.csv'}", *words(taught, tmp_path))
    assert ran.code == code
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err.startswith("error: ")
    assert expected in ran.err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_device_is_named_by_its_key_here(command: Command, taught: Taught) -> None:
    ran = command("predict", str(taught.finetune), str(taught.test), "device=toaster", small=False)
    assert ran.code == 2
    assert ran.err.startswith("error: device: unknown device 'toaster'")


def test_a_signal_ends_it_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "p.csv"
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with stoppable(View(make_console())), replacing(out) as file:
            file.write(b"half")
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopped; nothing was written" in capsys.readouterr().out


def test_the_time_left_does_not_count_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    progress = FolderProgress(View(make_console()), "predict", 400)
    assert progress.speed() == ""
    for moment in (10.0, 11.0):
        now[0] = moment
        progress.advance(100)
    now[0] = 11.9  # no time passes between batches
    assert progress.speed() == "100 images/s  2.0 s left"


def test_one_path_is_one_image_and_a_device_that_there_is_not_is_named(taught: Taught) -> None:
    path = next(taught.test.rglob("*.png"))
    _, card = load_model_and_card(taught.finetune)
    assert torch.equal(load_images(path, card), load_images([path], card))
    assert torch.equal(load_images(str(path), card), load_images([path], card))
    for device in ("nix", "", "cpu:x"):
        with pytest.raises(ValueError, match=f"device={device!r}: "):
            load_model_and_card(taught.finetune, device)


def test_load_images_refuses_a_network_for_other_channels(taught: Taught) -> None:
    _, card = read_model(taught.finetune)
    with pytest.raises(InputError, match="takes images of 1 channels"):
        load_images([], replace(card, channels=1))


@pytest.mark.parametrize("verb", ["predict", "features"])
def test_what_a_killed_one_left_goes_and_what_another_writes_stays(
    command: Command, taught: Taught, tmp_path: Path, verb: str
) -> None:
    left, other = tmp_path / ".p.csv.abcdefgh.fasthebb", tmp_path / ".q.csv.abcdefgh.fasthebb"
    left.write_text("path")
    with other.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ran = command(verb, str(taught.finetune), str(taught.test), f"out={tmp_path / 'p'}", "device=cpu", small=False)
    assert ran.code == 0, ran.err
    assert not left.exists()
    assert other.exists()


def test_a_device_is_no_file_to_write(command: Command, taught: Taught, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in ("/dev/full", tmp_path / "pipe"):
        ran = command("predict", str(taught.finetune), str(taught.test), f"out={place}", "device=cpu", small=False)
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert f"out={place} is a device or a pipe; give the path of a file" in ran.err
