"""`fasthebb data prepare`: a packed set equals its images, an incomplete one is refused, damaged images are named."""

import json
import os
import pickle
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from hashlib import blake2b, md5
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from fasthebb_cli import cli
from fasthebb_cli.data.dataset import Dataset, load_dataset, mean_and_std
from fasthebb_cli.data.loading import batches
from fasthebb_cli.data.packed import PACKED_FILE, PackedPixels, Plan
from fasthebb_cli.data.source import ImageFiles, InMemory
from fasthebb_cli.errors import InputError
from fasthebb_cli.prepare import command as prepare_command
from fasthebb_cli.prepare import packing
from fasthebb_cli.prepare.findings import OFFICIAL
from fasthebb_cli.prepare.packing import Packing
from fasthebb_cli.settings.config import DatasetConfig
from fasthebb_cli.settings.load import with_defaults
from tests.conftest import Ran
from tests.data.images import class_folders, picture, save, tiny_imagenet, write_cifar
from tests.lives import Life
from tests.prepare.conftest import Data

CPU = torch.device("cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    class_folders(root / "train", {"a": 10, "b": 10})
    class_folders(root / "test", {"a": 2, "b": 2}, first=30)
    save(root / "train/a/large.jpg", 50, (40, 30))
    return root


def words(root: Path, out: Path | None = None, size: int = 8) -> list[str]:
    there = [] if out is None else [f"out={out}"]
    return ["prepare", "dataset=image_folder", f"dataset.root={root}", f"dataset.size={size}", *there]


def load(root: Path, size: int = 8, name: str = "image_folder", **settings: Any) -> Dataset:
    return load_dataset(with_defaults(DatasetConfig, name=name, root=str(root), size=size, **settings), 0)


def assert_same(found: Dataset, expected: Dataset) -> None:
    assert found.digest == expected.digest
    assert found.classes == expected.classes
    for name in ("labels", "train", "validation", "test", "unlabelled"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    everything = torch.randperm(len(expected.labels))
    assert torch.equal(found.source.read(everything), expected.source.read(everything))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["uint8", "encoded"])
@pytest.mark.parametrize("in_memory", [None, False])
def test_packed_images_are_the_images(
    data: Data, photos: Path, tmp_path: Path, format: str, in_memory: bool | None
) -> None:
    code, out, err = data(*words(photos, tmp_path / "packed"), f"format={format}", "workers=2")
    assert code == 0, err
    assert "image_folder: 21 train, 4 test images, 2 classes" in out
    assert "25 images 8 x 8, 192 bytes an image: 4.8 kB in" in out or format == "encoded"
    assert "all 25 images can be read" in out
    sizes = (8,) if format == "uint8" else (8, 12)
    for size in sizes:
        packed, expected = load(tmp_path / "packed", size, in_memory=in_memory), load(photos, size)
        assert_same(packed, expected)
        assert torch.equal(mean_and_std(packed)[0], mean_and_std(expected)[0])
        kind = {None: InMemory, False: PackedPixels if format == "uint8" else ImageFiles}[in_memory]
        assert isinstance(packed.source, kind)
    again = data(*words(photos, tmp_path / "packed"), f"format={format}")
    assert again[0] == 0
    assert "packed before" in again[1]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["uint8", "encoded"])
def test_workers_read_a_packed_set_for_themselves(data: Data, photos: Path, tmp_path: Path, format: str) -> None:
    assert data(*words(photos, tmp_path / "packed"), f"format={format}")[0] == 0
    dataset = load(tmp_path / "packed", in_memory=False)
    assert len(pickle.dumps(dataset.source)) < 1000, "a worker would receive the images"

    def epoch(workers: int, start: int = 0) -> list[torch.Tensor]:
        stream = batches(
            dataset.source, dataset.train, batch_size=5, device=CPU, order_seed=2, start=start, workers=workers
        )
        return [images for images, _ in stream]

    here = epoch(0)
    for other, first in ((epoch(2), 0), (epoch(2, start=1), 1)):
        for one, two in zip(here[first:], other, strict=True):
            assert torch.equal(one, two)


def test_a_run_on_a_packed_set_is_the_run_on_its_files(command: Callable[..., Ran], data: Data, tmp_path: Path) -> None:
    class_folders(tmp_path / "photos/train", {"a": 8, "b": 8})
    assert data(*words(tmp_path / "photos", tmp_path / "packed", 32))[0] == 0
    shared = ("dataset=image_folder", "pretrain.epochs=1", "pretrain.batch_size=4", "finetune.epochs=1")
    ran = command("train", *shared, f"dataset.root={tmp_path / 'packed'}")
    assert ran.code == 0, ran.err
    ran = command("train", *shared, f"dataset.root={tmp_path / 'photos'}")
    assert ran.out.count("reused from") == 3


def test_a_table_of_labels_and_more_images_are_packed_with_them(data: Data, tmp_path: Path) -> None:
    class_folders(tmp_path / "photos", {".": 12})
    class_folders(tmp_path / "more", {"x": 3}, first=20)
    (tmp_path / "labels.csv").write_text("".join(f"{i:03}.png,{'ab'[i % 2]}\n" for i in range(10)))
    extra: dict[str, Any] = {"labels": str(tmp_path / "labels.csv"), "unlabelled": str(tmp_path / "more")}
    given = [f"dataset.{key}={value}" for key, value in extra.items()]
    assert data(*words(tmp_path / "photos", tmp_path / "packed"), *given)[0] == 0
    assert_same(load(tmp_path / "packed"), load(tmp_path / "photos", **extra))
    with pytest.raises(InputError, match=r"dataset.labels: .*packed is packed; set it when it is prepared"):
        load(tmp_path / "packed", labels=extra["labels"])


def test_a_zip_and_arrays_are_packed_too(data: Data, tmp_path: Path) -> None:
    top = tiny_imagenet(tmp_path / "data")
    archive = Path(shutil.make_archive(str(tmp_path / "tiny"), "zip", top.parent, top.name))
    given = ["prepare", "dataset=tiny_imagenet", f"dataset.root={archive}", "dataset.size=8", f"out={tmp_path / 'zip'}"]
    code, out, err = data(*given)
    assert code == 0, err
    assert (
        "warning: differs from tiny_imagenet as published: 99,980 of 100,000 train images missing, "
        "9,996 of 10,000 test images missing, 198 of 200 classes missing\n"
    ) in out
    assert_same(load(tmp_path / "zip", name="tiny_imagenet"), load(top, name="tiny_imagenet"))
    own = "tests.prepare.conftest:arrays"
    given = ["prepare", f"dataset={own}", f"dataset.root={tmp_path}", "dataset.size=8"]
    assert data(*given, f"out={tmp_path / 'arrays'}")[0] == 0
    assert_same(load(tmp_path / "arrays", name=own), load(tmp_path, name=own))
    code, _, err = data(*given, f"out={tmp_path / 'encoded'}", "format=encoded")
    assert code == 2
    assert f"dataset {own} has no image files; use format=uint8" in err


def test_more_images_than_were_published_are_no_smaller_copy(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["prepare", "dataset=tiny_imagenet", f"dataset.root={tiny_imagenet(tmp_path)}", "dataset.size=8"]
    monkeypatch.setitem(OFFICIAL, "tiny_imagenet", (20, 3, 2))
    assert "warning: differs from tiny_imagenet as published: 1 more than 3 test images\n" in data(*given)[1]
    monkeypatch.setitem(OFFICIAL, "tiny_imagenet", (20, 4, 2))
    assert "warning" not in data(*given)[1]


def test_classes_that_cannot_be_tested_are_listed(data: Data, tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {f"c{k:02}": 1 for k in range(14)})
    class_folders(tmp_path / "test", {"c00": 1, "c05": 1}, first=20)
    class_folders(tmp_path / "val", {f"c{k:02}": 1 for k in range(13)}, first=30)
    code, out, _ = data(*words(tmp_path))
    assert code == 0
    named = "c01, c02, c03, c04, c06, c07, c08, c09, c10, c11"
    assert f"warning: 12 of 14 classes without test images: {named} and 2 more\n" in out
    assert "warning: 1 of 14 classes without validation images: c13\n" in out


@pytest.mark.slow
def test_cifar_is_checked_and_packed_and_a_damaged_file_of_it_named(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_cifar(CIFAR10, tmp_path)

    def published(names: list[list[str]]) -> list[tuple[str, str]]:
        return [(name, md5((folder / name).read_bytes()).hexdigest()) for name, _ in names]

    for key in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, key, published(getattr(CIFAR10, key)))
    ((_, digest),) = published([[CIFAR10.meta["filename"], ""]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": digest})
    given = ["prepare", "dataset=cifar10", f"dataset.root={tmp_path}"]
    code, out, err = data(*given, f"out={tmp_path / 'packed'}")
    assert code == 0, err
    assert "cifar10: 50 train, 10 test images, 10 classes" in out
    assert_same(load(tmp_path / "packed", 32, "cifar10"), load(tmp_path, 32, "cifar10"))
    for name in ("data_batch_3", "test_batch", "batches.meta"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1])
        code, _, err = data(*given)
        assert (code, err.count("\n")) == (2, 1)
        assert f"{folder / name}: is damaged: its md5 sum is not the published" in err
        (folder / name).unlink()
        assert f"{folder / name}: there is no such file; the copy of cifar10 is not complete" in data(*given)[2]
        (folder / name).write_bytes(whole)


def spoil(root: Path) -> list[str]:
    (root / "train/a/003.png").write_bytes(b"")
    whole = (root / "train/b/000.png").read_bytes()
    (root / "train/b/000.png").write_bytes(whole[: len(whole) // 2])
    (root / "test/b/001.png").write_bytes(b"this is no image")
    return ["train/a/003.png", "train/b/000.png", "test/b/001.png"]


@pytest.mark.parametrize("format", ["uint8", "encoded"])
def test_damaged_images_are_listed_and_only_left_out_when_told_to(
    data: Data, photos: Path, tmp_path: Path, format: str
) -> None:
    damaged = spoil(photos)
    given = [*words(photos, tmp_path / "packed"), f"format={format}"]
    for line in (given, words(photos)):
        code, out, err = data(*line)
        assert code == 2
        assert all(f"{photos / name}: can't be read as an image" in out for name in damaged)
        assert "3 of 25 images can't be read; mend or remove them" in err
        told = f"{tmp_path / 'packed'} goes on only without them; to mend them, delete it, and check without out= first"
        assert (told in err) == (line is given)
    with pytest.raises(InputError, match=r"packed: is only partly packed; the `fasthebb data prepare`"):
        load(tmp_path / "packed")
    code, out, err = data(*given, "dataset.on_bad_image=skip")
    assert code == 0, err
    assert "goes on after 25 images" in out
    assert "packed 22 images" in out
    for name in damaged:
        (photos / name).unlink()
    for size in (8,) if format == "uint8" else (8, 12):
        assert_same(load(tmp_path / "packed", size), load(photos, size))
    assert [line.split(": ")[0] for line in load(tmp_path / "packed").left_out] == [str(photos / n) for n in damaged]


def test_a_class_is_not_lost_in_silence(data: Data, photos: Path, tmp_path: Path) -> None:
    for path in (photos / "train/b").iterdir():
        path.write_bytes(b"")
    code, _, err = data(*words(photos, tmp_path / "packed"), "dataset.on_bad_image=skip")
    assert code == 2
    assert "class b: not one of its training images can be read" in err
    assert not (tmp_path / "packed" / PACKED_FILE).exists()


def test_unusual_images_are_counted_and_read(data: Data, photos: Path, tmp_path: Path) -> None:
    folder = photos / "train/a"
    picture(60).convert("L").save(folder / "grey.png")
    picture(61).convert("CMYK").save(folder / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(62, (12, 6)).save(folder / "turned.jpg", exif=exif)
    picture(63).save(folder / "other.jpg", format="PNG")
    picture(64).save(folder / "missed.dat", format="PNG")
    (folder / "notes.txt").write_text("no image")
    code, out, err = data(*words(photos, tmp_path / "packed"))
    assert code == 0, err
    traits = {"grey, read as RGB": "grey.png", "CMYK, read as RGB": "cmyk.jpg"}
    for trait, name in (*traits.items(), ("turned by EXIF, read upright", "turned.jpg")):
        assert f"1 {trait} (the first: {folder / name})" in out
    assert f"1 of another format than named, read as what they are (the first: {folder / 'other.jpg'})" in out
    assert f"{folder / 'missed.dat'}: is an image that is not used" in out
    assert "notes.txt" not in out
    assert_same(load(tmp_path / "packed"), load(photos))


def test_a_packed_set_is_checked_against_its_checksums(data: Data, photos: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    assert data(*words(photos, packed))[0] == 0
    code, out, _ = data(*words(packed))
    assert code == 0
    assert "image_folder, packed (uint8): 21 train, 4 test, 2 classes" in out
    images = packed / "images.bin"
    content = bytearray(images.read_bytes())
    content[1000] ^= 1
    images.write_bytes(content)
    code, _, err = data(*words(packed))
    assert code == 2
    assert "block 0 of its images is not what was packed" in err
    images.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"images.bin: has 4,799 bytes instead of 4,800"):
        load(packed, in_memory=False)
    images.write_bytes(content)
    described = json.loads((packed / PACKED_FILE).read_text())
    damages: list[dict[str, Any]] = [{}, described | {"images": 24}, described | {"blocks": ["x"]}]
    for changed in damages:
        (packed / PACKED_FILE).write_text(json.dumps(changed))
        with pytest.raises(InputError, match=r"packed.json: is damaged"):
            load(packed, in_memory=False)


@pytest.mark.parametrize("name", ["index.npz", "listing"])
def test_every_file_of_a_packed_set_has_a_checksum(data: Data, photos: Path, tmp_path: Path, name: str) -> None:
    packed = tmp_path / "packed"
    assert data(*words(photos, packed), "format=encoded")[0] == 0
    content = bytearray((packed / name).read_bytes())
    content[len(content) // 2] ^= 1
    (packed / name).write_bytes(content)
    code, _, err = data(*words(packed))
    assert code == 2
    assert f"{name}: is not what was packed" in err
    (packed / name).unlink()
    with pytest.raises(InputError, match=f"{name}: is not what was packed"):
        load(packed)


def test_what_is_refused(data: Data, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "packed"
    assert data(*words(photos, packed))[0] == 0

    def refused(*given: str, code: int = 2) -> str:
        found, _, err = data(*given)
        assert found == code
        assert err.count("\n") == 1
        return err

    assert "holds another packed data set (25 images of image_folder at 8, uint8)" in refused(*words(photos, packed, 9))
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled/other.txt").touch()
    assert "is not empty" in refused(*words(photos, tmp_path / "filled"))
    for inside in (photos, photos / "packed"):
        assert "lies in the folder of the images" in refused(*words(photos, inside))
    assert "archive is for fasthebb data prepare" in refused("info", "dataset=digits", "archive=a.zip")
    assert "is packed already" in refused(*words(packed, tmp_path / "twice"))
    assert "comes with a package" in refused("prepare", "dataset=digits", f"out={tmp_path / 'digits'}")
    assert "format must be one of uint8, encoded" in refused(*words(photos), "format=png")
    (tmp_path / "empty").mkdir()
    archives = {name: shutil.make_archive(str(tmp_path / name), "tar", tmp_path / name) for name in ("photos", "empty")}
    assert "archive: dataset digits comes with a package" in refused(
        "prepare", "dataset=digits", f"dataset.root={tmp_path / 'made'}", f"archive={archives['photos']}"
    )
    before = sorted(packed.rglob("*"))
    assert f"dataset.root={packed} is a packed set; unpack it into another folder" in refused(
        *words(packed), f"archive={archives['photos']}"
    )
    assert sorted(packed.rglob("*")) == before
    assert "empty.tar: holds no files" in refused(*words(tmp_path / "made"), f"archive={archives['empty']}")
    assert not (tmp_path / "made").exists()
    for wrong in ([], ["stop"], ["dataset=digits"]):
        assert "fasthebb data prepare or fasthebb data info" in refused(*wrong)
    assert "dataset has no value: say which" in refused("prepare")
    assert "did you mean format" in refused("prepare", "formt=uint8")
    assert "there is no such file" in refused(*words(photos), "archive=gone.tar")
    with pytest.raises(InputError, match=r"dataset.size=9: .* is packed with size=8"):
        load(packed, 9)
    with pytest.raises(InputError, match=r"holds packed image_folder; use dataset=image_folder"):
        load(packed, name="tiny_imagenet")
    usage = shutil.disk_usage(tmp_path)._replace(free=4799)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "4.8 kB are needed, 4.8 kB are free" in refused(*words(photos, tmp_path / "full"), code=1)


def test_other_images_do_not_go_on_where_these_were(data: Data, photos: Path, tmp_path: Path) -> None:
    spoil(photos)
    assert data(*words(photos, tmp_path / "packed"))[0] == 2
    save(photos / "train/a/003.png", 3)
    code, _, err = data(*words(photos, tmp_path / "packed"))
    assert code == 2
    assert "was begun with other images or settings" in err


def pack(words: list[str], longest: int = -1, killed: tuple[int, int] | None = None) -> None:
    """Runs `fasthebb data`, which here saves after a few images, not after 256 MiB.

    Args:
        longest: the largest size of a file in bytes, which imitates a full disk.
        killed: (files, calls): it is killed at this call of a Python function after so many files were synced.
    """
    packing.BLOCK_BYTES, prepare_command.CHUNK = 20_000, 4
    resource.setrlimit(resource.RLIMIT_FSIZE, (longest, -1))
    if killed is not None:
        synced, calls = killed
        sync, syncs, events = os.fsync, count(1), count(1)

        def on_call(*_: object) -> None:
            if next(events) == calls:
                signal.raise_signal(signal.SIGKILL)

        def counted(file: Any) -> None:
            sync(file)
            if next(syncs) == synced:
                sys.setprofile(on_call)

        patch.object(os, "fsync", counted).start()
    sys.exit(cli.run(["data", *words]))


@pytest.mark.slow
def test_a_killed_packing_goes_on_and_is_never_taken_for_a_whole_one(photos: Path, tmp_path: Path) -> None:
    class_folders(photos / "train", {"c": 150}, first=100)
    spoil(photos)
    whole, packed = ([*words(photos, tmp_path / name, 48), "dataset.on_bad_image=skip"] for name in ("whole", "packed"))
    resumed = 0
    for killed in ((3, 1), (3, 20), (2, 50), (6, 5), (7, 100), (3, 10)):
        life = Life(partial(pack, packed, killed=killed), tmp_path / f"{killed}.log")
        assert life.wait() == -signal.SIGKILL, life.text()
        resumed += "goes on after" in life.text()
        with pytest.raises(InputError, match="is only partly packed"):
            load(tmp_path / "packed", 48)
    assert resumed >= 4
    for arguments in (packed, whole):
        life = Life(partial(pack, arguments), tmp_path / "last.log")
        assert life.wait() == 0, life.text()
    for name in ("images.bin", PACKED_FILE):
        assert (tmp_path / "packed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with np.load(tmp_path / "packed/index.npz") as one, np.load(tmp_path / "whole/index.npz") as two:
        assert all(np.array_equal(one[key], two[key]) for key in two)
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == ["images.bin", "index.npz", PACKED_FILE]


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_next_start_goes_on(photos: Path, tmp_path: Path) -> None:
    class_folders(photos / "train", {"c": 60}, first=100)
    arguments = words(photos, tmp_path / "packed", 48)
    full = Life(partial(pack, arguments, longest=300_000), tmp_path / "full.log")
    assert full.wait() == 1, full.text()
    errors = [line for line in full.text().splitlines() if line.startswith("error")]
    assert errors == full.text().splitlines()[-1:]
    assert f"can't write {tmp_path / 'packed'}: File too large; the same command goes on" in errors[0]
    more = Life(partial(pack, arguments), tmp_path / "more.log")
    assert more.wait() == 0, more.text()
    assert "goes on after" in more.text()
    assert_same(load(tmp_path / "packed", 48), load(photos, 48))


def test_a_torn_line_of_the_journal_is_done_again(data: Data, photos: Path, tmp_path: Path) -> None:
    spoil(photos)
    assert data(*words(photos, tmp_path / "packed"))[0] == 2
    journal = tmp_path / "packed/packing.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    code, out, _ = data(*words(photos, tmp_path / "packed"), "dataset.on_bad_image=skip")
    assert code == 0
    assert "goes on after" not in out
    assert len(json.loads((tmp_path / "packed" / PACKED_FILE).read_text())["blocks"]) == 1
    expected = replace(with_defaults(DatasetConfig, name="image_folder", root=str(photos), size=8), on_bad_image="skip")
    assert_same(load(tmp_path / "packed"), load_dataset(expected, 0))


def test_a_packing_goes_on_only_from_what_it_wrote(tmp_path: Path) -> None:
    plan = Plan("image_folder", "uint8", 8, 3, 2, "0")
    digest = blake2b(bytes(192), digest_size=16).hexdigest()
    block = {"images": 1, "lengths": [], "damaged": {}, "traits": {}, "end": 192, "digest": digest}
    (tmp_path / "packing.jsonl").write_text(f"{json.dumps(asdict(plan))}\n{json.dumps(block)}\n")
    (tmp_path / "images.bin").write_bytes(bytes(200))
    with Packing(tmp_path, plan) as packing:
        assert packing.images == 1
    for content in (b"", bytes(191), bytes(191) + b"x"):
        (tmp_path / "images.bin").write_bytes(content)
        with pytest.raises(InputError, match=r"images.bin is not what was written"):
            Packing(tmp_path, plan)
        assert (tmp_path / "images.bin").read_bytes() == content
    for line in ('{"images": 3}', "[]", "nonsense"):
        (tmp_path / "packing.jsonl").write_text(f"{json.dumps(asdict(plan))}\n{line}\n")
        with pytest.raises(InputError, match=r"packing.jsonl: is damaged"):
            Packing(tmp_path, plan)


def test_one_image_is_no_images(data: Data, tmp_path: Path) -> None:
    save(tmp_path / "photos/a.png", 1)
    given = ["prepare", "dataset=image_folder", "dataset.size=8"]
    code, out, err = data(*given, f"dataset.root={tmp_path / 'photos'}", f"out={tmp_path / 'packed'}")
    assert code == 0, err
    for said in (
        "image_folder: 1 train image, no classes",
        "\n1 image 8 x 8",
        "\n1 image can be read",
        "packed 1 image,",
    ):
        assert said in out
    code, out, err = data(*given, f"dataset.root={tmp_path / 'packed'}")
    assert code == 0, err
    assert "every block is as it was written (1)" in out
