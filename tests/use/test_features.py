"""`fasthebb features`: it equals a direct forward pass, in the order of the paths, for any layer and network."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from fasthebb.model_file import load_model_and_card
from fasthebb_cli.errors import InputError
from fasthebb_cli.use.features import flattened, last_layer, layer_names, layer_reader
from fasthebb_cli.use.images import load_images
from tests.conftest import Ran
from tests.data.images import class_folders
from tests.use.conftest import TEST, Taught

pytestmark = pytest.mark.xdist_group("taught")  # they share a model

Command = Callable[..., Ran]


def features(command: Command, *words: object) -> Ran:
    return command("features", *map(str, words), "device=cpu", small=False)


def expected(taught: Taught, paths: list[str], upto: Callable[[nn.Sequential, Tensor], Tensor]) -> Tensor:
    network, card = load_model_and_card(taught.finetune)
    assert isinstance(network, nn.Sequential)
    with torch.no_grad():
        return upto(network, load_images([taught.test / path for path in paths], card))


DIRECT: dict[str, tuple[list[str], Callable[[nn.Sequential, Tensor], Tensor]]] = {
    "whole maps": (["layer=conv2", "pool=0"], lambda network, x: network[:2](x).flatten(1)),
    "averaged": (["layer=conv2"], lambda network, x: adaptive_avg_pool2d(network[:2](x), 4).flatten(1)),
    "smaller than the grid": (["layer=conv4", "pool=9"], lambda network, x: network[:4](x).flatten(1)),
    "the default": ([], lambda network, x: network[:5](x)),
    "part of a layer": (["layer=conv1.0", "pool=0"], lambda network, x: network.get_submodule("conv1.0")(x).flatten(1)),
    "in one batch each": (["layer=conv3", "batch_size=1", "pool=1"], lambda network, x: network[:3](x).mean((2, 3))),
    "by a worker": (["layer=fc5", "workers=1"], lambda network, x: network[:5](x)),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if "worker" in case else ()) for case in DIRECT]
)
def test_they_are_those_of_a_direct_forward_pass(command: Command, taught: Taught, tmp_path: Path, case: str) -> None:
    words, upto = DIRECT[case]
    ran = features(command, taught.finetune, taught.test, f"out={tmp_path / 'f'}", *words)
    assert ran.code == 0, ran.err
    array = np.load(tmp_path / "f.npy", mmap_mode="r")
    paths = (tmp_path / "f.txt").read_text().splitlines()
    assert paths == sorted(path.relative_to(taught.test).as_posix() for path in taught.test.rglob("*.png"))
    wanted = expected(taught, paths, upto)
    assert array.dtype == np.float32
    assert array.shape == (TEST, wanted.shape[1])
    torch.testing.assert_close(torch.from_numpy(np.array(array)), wanted, rtol=1e-4, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npy", "f.txt"]


def test_a_pre_trained_model_will_do_and_damaged_files_have_no_row(
    command: Command, taught: Taught, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for k, file in enumerate(sorted(taught.test.rglob("*.png"))[:12]):
        (photos / f"{k:02}.png").write_bytes(file.read_bytes() if k % 4 else b"damaged")
    ran = features(command, taught.pretrain, photos, f"out={tmp_path / 'f.npy'}", "batch_size=5")
    assert ran.code == 0, ran.err
    assert "3 of 12 files can't be read and were left out" in ran.out
    assert len(np.load(tmp_path / "f.npy")) == 9
    assert (tmp_path / "f.txt").read_text().split() == [f"{k:02}.png" for k in range(12) if k % 4]
    assert "fc5: 9 x" in ran.out


BAD_INPUT = {
    "unknown layer": (["layer=conv9"], "no such layer; the network has: conv1, conv2, conv3, conv4, fc5"),
    "pool below 0": (["pool=-1"], "pool must be at least 0"),
    "no number": (["pool=two"], "pool must be a whole number"),
    "a folder in the way": (["out=."], "is a folder"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing(command: Command, taught: Taught, tmp_path: Path, case: str) -> None:
    words, message = BAD_INPUT[case]
    ran = features(command, taught.finetune, taught.test, f"out={tmp_path / 'f'}", *words)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert message in ran.err
    assert list(tmp_path.iterdir()) == []


def test_nothing_readable_or_a_name_with_a_line_break_leaves_nothing(
    command: Command, taught: Taught, tmp_path: Path
) -> None:
    for name, message in (("bad.png", "not one file of 1"), ("two\nlines.png", "a path with a line break")):
        photos = tmp_path / "photos"
        photos.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"damaged")
        ran = features(command, taught.finetune, photos, f"out={tmp_path / 'f'}")
        assert ran.code == 2
        assert message in ran.err
        assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_disk_without_room_is_found_after_the_first_batch(
    command: Command, taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    ran = features(command, taught.finetune, taught.test, f"out={tmp_path / 'f'}")
    assert ran.code == 1
    assert "and 10 bytes are free" in ran.err
    assert list(tmp_path.iterdir()) == []


class Branches(nn.Module):
    """No sequence: two paths that join, a module that is called twice, and a module that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(3, 4)
        self.act, self.idle = nn.ReLU(inplace=True), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.act(self.left(x)) + self.act(self.right(x))
        return total


def test_of_any_network_a_named_part_is_read_before_the_next_changes_it() -> None:
    network, x = Branches(), torch.randn(8, 3)
    assert torch.equal(layer_reader(network, "left")(x), network.left(x))
    assert layer_names(network) == ["left", "right", "act", "idle"]
    with pytest.raises(InputError, match="layer has no value; the network has: left, right"):
        last_layer(network)
    for layer, message in (("act", "2 tensors"), ("idle", "0 tensors")):
        with pytest.raises(InputError, match=message):
            layer_reader(network, layer)(x)


def test_the_parts_of_a_network_in_one_piece_are_named() -> None:
    inner = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    network = nn.Sequential()
    network.add_module("features", inner)
    network.add_module("classifier", nn.Linear(4, 2))
    assert last_layer(network) == "features"
    assert layer_names(network) == ["features", "features.0", "features.1"]
    with pytest.raises(InputError, match="no such layer; the network has: features"):
        layer_reader(network, "conv1")


def test_an_output_that_is_not_a_row_an_image_is_refused() -> None:
    with pytest.raises(InputError, match="not one row an image"):
        flattened(torch.zeros(2, 3), 4, "attention", images=5)


@pytest.mark.slow
def test_a_classifier_in_closed_form_gives_its_components_and_its_layers(command: Command, tmp_path: Path) -> None:
    words = ("dataset=image_folder", f"dataset.root={tmp_path / 'photos'}", "finetune=closed_form", "gpu=cpu")
    class_folders(tmp_path / "photos/train", {"a": 20, "b": 20})
    small = ("model.width=0.03", "pretrain.epochs=1", "finetune.components=7", "stages=[pretrain,finetune]")
    ran = command("train", *words, *small, small=False)
    assert ran.code == 0, ran.err
    (model,) = ran.directories("finetune")
    photos = tmp_path / "photos/train/a"
    for layer, length in ((), 7), (("layer=conv1",), 16 * 3):
        done = features(command, model, photos, f"out={tmp_path / 'f'}", *layer)
        assert done.code == 0, done.err
        assert np.load(tmp_path / "f.npy").shape == (20, length)
    refused = features(command, model, photos, f"out={tmp_path / 'f'}", "layer=conv9")
    assert "the network has: components, conv1, conv2" in refused.err
