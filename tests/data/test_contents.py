"""Image files are known by what is in them, and each is read once for that."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fasthebb_cli.data import contents, packed
from fasthebb_cli.data.collection import Collection
from fasthebb_cli.data.dataset import _collection, collection_of
from fasthebb_cli.data.files import FileList, ImageFile
from fasthebb_cli.data.walk import list_images
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.prepare.command import run_data
from fasthebb_cli.settings.config import DatasetConfig
from fasthebb_cli.settings.load import with_defaults
from fasthebb_cli.settings.tools import DataConfig
from tests.data.images import class_folders, picture, save


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTHEBB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read for their digests."""
    found: list[str] = []
    digest = contents._digest

    def counted(file: ImageFile, read: Callable[[str], bytes]) -> bytes:
        found.append(file.name)
        return digest(file, read)

    monkeypatch.setattr(contents, "_digest", counted)
    return found


def opened(root: Path, **settings: object) -> Collection:
    _collection.cache_clear()
    return collection_of(with_defaults(DatasetConfig, name="image_folder", root=str(root), size=8, **settings))


def bitmaps(root: Path) -> None:
    """Images whose files are equally long, whatever they show."""
    for k in range(12):
        save(root / f"class {k % 3}" / f"{k}.bmp", k)


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_file_that_is_changed_while_a_run_reads_it_is_found_unless_pixels_are_in_memory(
    tmp_path: Path, in_memory: bool
) -> None:
    bitmaps(tmp_path)
    collection = opened(tmp_path, in_memory=in_memory)
    everything = torch.arange(len(collection.source))
    before = collection.source.read(everything)
    file = next(tmp_path.rglob("4.bmp"))
    content = file.read_bytes()
    file.write_bytes(content)  # touched
    assert torch.equal(collection.source.read(everything), before)
    file.write_bytes(content[:54] + content[:53:-1])
    if in_memory:
        assert torch.equal(collection.source.read(everything), before)
        return
    for reader in (collection.source, pickle.loads(pickle.dumps(collection.source))):
        with pytest.raises(RunError, match=r"4.bmp: was changed while the run reads it"):
            reader.read(everything)


def test_other_pixels_in_files_of_the_same_names_and_lengths_are_another_set(tmp_path: Path) -> None:
    bitmaps(tmp_path / "a")
    before = opened(tmp_path / "a").digest
    file = tmp_path / "a" / "class 0" / "0.bmp"
    length = file.stat().st_size
    picture(99).save(file)
    assert file.stat().st_size == length
    assert opened(tmp_path / "a").digest != before
    picture(0).save(file)
    assert opened(tmp_path / "a").digest == before
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    picture(99).save(file)
    os.utime(file, ns=times)  # as programs do that keep the times of what they copy
    assert opened(tmp_path / "a").digest != before


def test_a_set_that_was_moved_or_touched_or_whose_cache_is_lost_is_the_same(tmp_path: Path) -> None:
    bitmaps(tmp_path / "a")
    before = opened(tmp_path / "a").digest
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    assert opened(tmp_path / "b").digest == before
    for file in (tmp_path / "a").rglob("*.bmp"):
        os.utime(file, (1, 1))
    assert opened(tmp_path / "a").digest == before
    for kept in (tmp_path / "cache").iterdir():
        kept.write_bytes(kept.read_bytes()[:-3] + b"abc")
    assert opened(tmp_path / "a").digest == before
    (tmp_path / "a" / "class 0" / "0.bmp").rename(tmp_path / "a" / "class 0" / "00.bmp")
    assert opened(tmp_path / "a").digest != before


def test_a_file_is_read_once_and_again_where_it_has_changed(tmp_path: Path, reads: list[str]) -> None:
    bitmaps(tmp_path / "a")
    for expected in (12, 0):
        reads.clear()
        opened(tmp_path / "a")
        assert len(reads) == expected
    picture(99).save(tmp_path / "a" / "class 1" / "4.bmp")
    save(tmp_path / "a" / "class 1" / "44.bmp", 1)
    (tmp_path / "a" / "class 2" / "11.bmp").unlink()
    opened(tmp_path / "a")
    assert sorted(reads) == ["class 1/4.bmp", "class 1/44.bmp"]
    reads.clear()
    opened(tmp_path / "a", in_memory=False)
    assert reads == []


def test_where_no_cache_can_be_written_files_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    bitmaps(tmp_path / "a")
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTHEBB_CACHE", str(tmp_path / "file" / "below"))
    assert opened(tmp_path / "a").digest == opened(tmp_path / "a").digest
    assert len(reads) == 24


def test_it_is_said_before_many_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bitmaps(tmp_path / "a")
    monkeypatch.setattr(contents, "TOLD", 10)
    told: list[str] = []
    for _ in range(2):
        with contents.telling(told.append):
            opened(tmp_path / "a")
    assert told == ["reads 12 images once, to know them by their content"]


def test_a_file_that_can_not_be_read_counts_as_one(tmp_path: Path) -> None:
    files = FileList([ImageFile("a.png", str(tmp_path / "a.png"), 3, changed=1), ImageFile("b.png", "b.png", 0)])
    found = contents.content_digests(files, "here", lambda path: Path(path).read_bytes())
    assert [bytes(row) for row in found] == [contents.UNREAD] * 2


def test_a_file_that_could_not_be_read_is_read_when_it_can_be(tmp_path: Path) -> None:
    """Its time does not change when its permissions do."""
    bitmaps(tmp_path / "a")
    locked, expected = str(tmp_path / "a" / "class 0" / "0.bmp"), opened(tmp_path / "a").digest
    shutil.rmtree(tmp_path / "cache")

    def read(path: str) -> bytes:
        if path == locked:
            raise PermissionError
        return Path(path).read_bytes()

    files = FileList(list_images(tmp_path / "a"))
    place = f"image_folder {tmp_path / 'a'} None"
    assert [bytes(row) for row in contents.content_digests(files, place, read)].count(contents.UNREAD) == 1
    assert opened(tmp_path / "a").digest == expected


def test_a_changed_or_lost_description_of_a_packed_set_is_found(tmp_path: Path) -> None:
    class_folders(tmp_path / "a", {"cat": 6, "dog": 6})
    config = with_defaults(DatasetConfig, name="image_folder", root=str(tmp_path / "a"), size=8)
    run_data(DataConfig(config, "prepare", str(tmp_path / "packed"), "uint8", None, 0, 0), Console(quiet=True))
    file = tmp_path / "packed" / "packed.json"
    content = json.loads(file.read_text())
    for changes in ({"classes": ["dog", "cat"]}, {"plan": content["plan"] | {"fit": "pad"}}):
        file.write_text(json.dumps(content | changes))
        with pytest.raises(InputError, match=r"packed\.json: is damaged \(it was changed after it had been written\)"):
            opened(tmp_path / "packed")
    file.write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"packed\.json: is damaged"):
        opened(tmp_path / "packed")
    del content["seal"]  # an earlier version wrote it
    file.write_text(json.dumps(content))
    assert opened(tmp_path / "packed").classes == ("cat", "dog")
    file.unlink()
    with pytest.raises(InputError, match=r"packed\.json: is missing beside images\.bin"):
        opened(tmp_path / "packed")


@pytest.mark.parametrize("form", ["uint8", "encoded"])
def test_packed_images_are_compared_with_their_digests_when_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    class_folders(tmp_path / "a", {"cat": 6, "dog": 6})
    config = with_defaults(DatasetConfig, name="image_folder", root=str(tmp_path / "a"), size=8)
    run_data(DataConfig(config, "prepare", str(tmp_path / "packed"), form, None, 0, 0), Console(quiet=True))
    before = opened(tmp_path / "packed")
    assert before.digest == opened(tmp_path / "a").digest
    compared: list[Path] = []
    damaged_block = packed.damaged_block

    def counted(folder: Path, blocks: Sequence[tuple[int, str]]) -> int | None:
        compared.append(folder)
        return damaged_block(folder, blocks)

    monkeypatch.setattr(packed, "damaged_block", counted)
    opened(tmp_path / "packed")
    assert not compared, "it has not changed since"
    images = tmp_path / "packed" / "images.bin"
    content = bytearray(images.read_bytes())
    content[-1] ^= 1
    images.write_bytes(content)
    with pytest.raises(InputError, match=r"images\.bin: is not what was packed"):
        opened(tmp_path / "packed")
    content[-1] ^= 1
    images.write_bytes(content)
    assert opened(tmp_path / "packed").digest == before.digest
    assert len(compared) == 2
