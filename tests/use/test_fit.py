"""Images are made square as the network's training images were: the card of its weights says how."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fasthebb.card import FITS
from fasthebb.model_file import load_model_and_card
from fasthebb_cli import cli
from fasthebb_cli.data.dataset import load_dataset
from fasthebb_cli.data.source import Fit, decode
from fasthebb_cli.data.transforms import to_float
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import DatasetConfig
from fasthebb_cli.settings.load import with_defaults
from fasthebb_cli.use.images import load_images, statistics
from tests.conftest import Ran
from tests.data.images import save

Command = Callable[..., Ran]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for part, count in (("train", 8), ("test", 2)):
        for k, name in enumerate(("a", "b")):
            for i in range(count):
                save(tmp_path / "photos" / part / name / f"{i}.png", 100 * k + 10 * count + i, (24, 8))
    return tmp_path / "photos"


@pytest.mark.slow
def test_the_card_says_how_and_predict_does_it(command: Command, photos: Path) -> None:
    words = ("dataset=image_folder", f"dataset.root={photos}", "dataset.size=32", "dataset.fit=pad",
             "dataset.background=black", "rule=none", "label_fraction=1")  # fmt: skip
    ran = command("train", *words, "pretrain.batch_size=4", "finetune.batch_size=4", "finetune.epochs=1")
    assert ran.code == 0, ran.err
    (model,) = ran.directories("finetune")
    _, card = load_model_and_card(model)
    assert (card.fit, card.background) == ("pad", "black")
    image = photos / "test/a/0.png"
    padded = torch.from_numpy(decode(str(image), Fit(32, "pad", "black")).copy())[None]
    assert torch.equal(load_images([image], card), to_float(padded, *statistics(card)))
    out = photos.parent / "predicted.csv"
    assert command("predict", str(model), str(photos / "test"), f"out={out}", "device=cpu", small=False).code == 0


@pytest.mark.slow
def test_weights_that_saw_images_of_another_fit_are_warned_of(command: Command, photos: Path) -> None:
    words = ("dataset=image_folder", f"dataset.root={photos}", "dataset.size=32", "pretrain.batch_size=4")
    learnt = command("pretrain", *words)
    (model,) = learnt.directories("pretrain")
    assert b'"fit"' not in (model / "model.safetensors").read_bytes(), "files of the usual fit stay as they were"
    ran = command("finetune", *words, "dataset.fit=stretch", f"init_from={model}", "finetune.batch_size=4")
    assert ran.code == 0, ran.err
    said = " ".join(ran.out.split())
    assert "learnt from images with dataset.fit=crop dataset.background=white, and here they are stretch" in said


def test_pixels_that_are_packed_with_one_fit_are_not_read_with_another(photos: Path, tmp_path: Path) -> None:
    words = ["prepare", "dataset=image_folder", f"dataset.root={photos}", "dataset.size=8", "dataset.fit=pad"]
    assert cli.run(["data", *words, f"out={tmp_path / 'pixels'}", "format=uint8"]) == 0
    assert cli.run(["data", *words, f"out={tmp_path / 'files'}", "format=encoded"]) == 0

    def opened(root: Path, **settings: str) -> str:
        return load_dataset(
            with_defaults(DatasetConfig, name="image_folder", root=str(root), size=8, **settings), 0
        ).digest

    padded = opened(photos, fit="pad")
    assert opened(tmp_path / "pixels", fit="pad") == padded
    assert opened(tmp_path / "files", fit="pad") == padded
    assert opened(tmp_path / "files") == opened(photos) != padded
    with pytest.raises(InputError, match=r"dataset.fit=crop: .* is packed with fit=pad; use that"):
        opened(tmp_path / "pixels")
    with pytest.raises(InputError, match=r"dataset.background=black: .* is packed with background=white"):
        opened(tmp_path / "pixels", fit="pad", background="black")


def test_classes_of_a_packed_set_are_chosen_when_it_is_prepared(photos: Path, tmp_path: Path) -> None:
    for i in range(8):
        save(photos / f"train/c/{i}.png", 500 + i)
    (tmp_path / "two.txt").write_text("a\nc\n")
    words = ["prepare", "dataset=image_folder", f"dataset.root={photos}", "dataset.size=8"]
    two = f"dataset.classes={tmp_path / 'two.txt'}"
    assert cli.run(["data", *words, f"out={tmp_path / 'whole'}"]) == 0
    assert cli.run(["data", *words, two, f"out={tmp_path / 'part'}"]) == 0

    def opened(root: Path) -> str:
        given = with_defaults(
            DatasetConfig, name="image_folder", root=str(root), size=8, classes=str(tmp_path / "two.txt")
        )
        return load_dataset(given, 0).digest

    assert opened(tmp_path / "part") == opened(photos)
    with pytest.raises(InputError, match="is packed with more classes; set it when it is prepared"):
        opened(tmp_path / "whole")


def test_both_homes_of_the_fits_agree() -> None:
    for fit in FITS:
        assert with_defaults(DatasetConfig, name="digits", fit=fit).fit == fit
    with pytest.raises(InputError, match=f"fit must be one of {', '.join(FITS)}, not 'zoom'"):
        with_defaults(DatasetConfig, name="digits", fit="zoom")
    with pytest.raises(InputError, match="background must be a colour"):
        with_defaults(DatasetConfig, name="digits", background="whitish")


def test_weights_that_saw_images_of_another_size_are_warned_of(command: Command, photos: Path) -> None:
    words = ("dataset=image_folder", f"dataset.root={photos}", "model=triangle", "rule=random", "pretrain.batch_size=4")
    learnt = command("pretrain", *words, "model.width=0.02", "dataset.size=32")
    assert learnt.code == 0, learnt.err
    (model,) = learnt.directories("pretrain")
    ran = command(
        "finetune", *words, "model.width=0.02", "dataset.size=48", f"init_from={model}", "finetune.batch_size=4"
    )
    assert ran.code == 0, ran.err
    assert "learnt from images of 32 x 32, and here they are 48 x 48 (dataset.size)" in " ".join(ran.out.split())
