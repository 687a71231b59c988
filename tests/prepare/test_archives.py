"""Unpacking: files are whole, and an archive with a member outside of the folder writes nothing at all."""

import bz2
import gzip
import io
import lzma
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.prepare.archives import unpack
from tests.data.images import class_folders, picture
from tests.prepare.conftest import Data


def tarred(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "..\\evil.txt"])
def test_no_path_outside_of_the_folder(tmp_path: Path, kind: str, name: str) -> None:
    content = {"good.txt": b"good", name: b"evil"}
    if kind == "tar":
        archive = tarred(tmp_path / "a.tar", [(tarfile.TarInfo(key), value) for key, value in content.items()])
    else:
        archive = zipped(tmp_path / "a.zip", content)
    with pytest.raises(InputError, match=r"member .*evil.* lies outside of the folder; nothing of it was unpacked"):
        unpack(archive, tmp_path / "there", lambda count: None)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [archive.name]


@pytest.mark.parametrize(
    "info",
    [link("a", "/etc"), link("a", "../b"), link("a", "good.txt", tarfile.LNKTYPE), link("a", "", tarfile.CHRTYPE)],
)
def test_no_links_or_devices(tmp_path: Path, info: tarfile.TarInfo) -> None:
    archive = tarred(tmp_path / "a.tar", [(tarfile.TarInfo("good.txt"), b"good"), (info, b"")])
    with pytest.raises(InputError, match=r"member 'a' is no file; nothing of it was unpacked"):
        unpack(archive, tmp_path / "there", lambda count: None)
    assert not (tmp_path / "there").exists()


def test_no_links_in_a_zip(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match=r"member 'a' is no file"):
        unpack(tmp_path / "a.zip", tmp_path / "there", lambda count: None)


@pytest.mark.parametrize("name", ["out/evil.txt", "out/new/evil.txt", "a/out/evil.txt"])
def test_no_link_that_is_there_is_followed_outside(tmp_path: Path, name: str) -> None:
    outside, there = tmp_path / "outside", tmp_path / "there"
    outside.mkdir()
    (there / "a").mkdir(parents=True)
    for folder in (there, there / "a"):
        (folder / "out").symlink_to(outside)
    archive = zipped(tmp_path / "a.zip", {"good.txt": b"good", name: b"evil"})
    with pytest.raises(InputError, match=r"out(/new)? leads out of the folder by a link; nothing of it was unpacked"):
        unpack(archive, there, lambda count: None)
    assert not list(outside.iterdir())
    assert not (there / "good.txt").exists()


def test_a_link_to_the_folder_or_within_it_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there/b").mkdir(parents=True)
    (tmp_path / "there/a").symlink_to("b")
    (tmp_path / "link").symlink_to("there")
    archive = zipped(tmp_path / "a.zip", {"a/one.txt": b"one"})
    assert unpack(archive, tmp_path / "link", lambda count: None) == 1
    assert (tmp_path / "there/b/one.txt").read_bytes() == b"one"


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")  # a warning of zipfile when it writes the file
def test_the_last_of_one_name_counts(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / f"a.{kind}"
    files = [("a.txt", b"old"), ("b.txt", b"b"), ("./a.txt", b"new"), ("b.txt", b"longer")]
    if kind == "tar":
        tarred(archive, [(tarfile.TarInfo(name), content) for name, content in files])
    else:
        with zipfile.ZipFile(archive, "w") as packed:
            for name, content in files:
                packed.writestr(name, content)
    counted = list[int]()
    assert unpack(archive, tmp_path / "there", counted.append) == 2
    assert sum(counted) == 2
    assert (tmp_path / "there/a.txt").read_bytes() == b"new"
    assert (tmp_path / "there/b.txt").read_bytes() == b"longer"
    assert unpack(archive, tmp_path / "there", counted.append) == 0


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_files_are_unpacked_once_and_a_half_one_again(tmp_path: Path, kind: str) -> None:
    content = {"a/one.txt": b"one", "a/b/two.txt": b"two" * 1000}
    archive = tmp_path / f"x.{kind}"
    if kind == "zip":
        zipped(archive, content)
    else:
        with tarfile.open(archive, "w:gz" if kind.endswith("gz") else "w") as tar:
            for name, value in content.items():
                info = tarfile.TarInfo(name)
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))
    there, counted = tmp_path / "there", list[int]()
    assert unpack(archive, there, counted.append) == 2
    assert sum(counted) == 2
    assert {str(p.relative_to(there)): p.read_bytes() for p in there.rglob("*") if p.is_file()} == content
    (there / "a/b/two.txt").write_bytes(b"tw")
    assert unpack(archive, there, counted.append) == 1
    assert (there / "a/b/two.txt").read_bytes() == content["a/b/two.txt"]


def test_what_is_no_whole_archive(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "a.zip", {"a.txt": bytes(range(256)) * 100})
    (tmp_path / "b.zip").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"b.zip: is no tar or zip file"):
        unpack(tmp_path / "b.zip", tmp_path / "there", lambda count: None)
    content = bytearray(whole.read_bytes())
    content[100] ^= 255
    whole.write_bytes(content)
    with pytest.raises(InputError, match=r"a.zip: is damaged: Bad CRC-32"):
        unpack(whole, tmp_path / "there", lambda count: None)
    assert not list((tmp_path / "there").iterdir()), "half a file was left"


def test_an_archive_is_unpacked_checked_and_packed_by_one_command(data: Data, tmp_path: Path) -> None:
    class_folders(tmp_path / "made/imagenet/train", {"n1": 5, "n2": 5})
    class_folders(tmp_path / "made/imagenet/val", {"n1": 1, "n2": 1}, first=20)
    picture(0)
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        tar.add(tmp_path / "made/imagenet", "imagenet")
    given = [
        "prepare", "dataset=imagenet", f"dataset.root={tmp_path / 'root'}", f"archive={tmp_path / 'in.tar'}",
        "dataset.size=8", f"out={tmp_path / 'packed'}",
    ]  # fmt: skip
    code, out, err = data(*given)
    assert code == 0, err
    assert "unpacked 12 of 12 files" in out
    assert "packed 12 images" in out
    assert "unpacked 0 of 12 files" in data(*given)[1]


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    members = [(tarfile.TarInfo(f"{k}.bin"), bytes(600)) for k in range(4)]
    archive = tarred(tmp_path / "a.tar", members)
    whole = archive.read_bytes()
    assert unpack(archive, tmp_path / "whole", lambda done: None) == 4
    third = whole.index(b"2.bin")
    archive.write_bytes(whole[:third] + b"X" + whole[third + 1 :])
    with pytest.raises(InputError, match="is damaged: no header where one should be"):
        unpack(archive, tmp_path / "damaged", lambda done: None)
    assert not (tmp_path / "damaged").exists()


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, bz2.compress])
def test_a_flipped_bit_in_a_compressed_tar_is_found(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    content = random.Random(0).randbytes(200_000)
    info = tarfile.TarInfo("noise.bin")
    packed = bytearray(compress(tarred(tmp_path / "a.tar", [(info, content)]).read_bytes()))
    packed[100_000] ^= 4
    archive = tmp_path / "a.tar.z"
    archive.write_bytes(packed)
    with pytest.raises(InputError, match=r"is damaged|is no tar"):
        unpack(archive, tmp_path / "damaged", lambda done: None)
    assert not (tmp_path / "damaged").exists()


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"a.txt": b"secret"})
    packed = bytearray(archive.read_bytes())
    packed[packed.index(b"PK\x01\x02") + 8] |= 1  # the flag in the archive's directory
    archive.write_bytes(packed)
    with pytest.raises(InputError, match=r"member 'a.txt' is encrypted; nothing of it was unpacked"):
        unpack(archive, tmp_path / "out", lambda done: None)


def test_more_than_there_is_room_for_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an archive says of itself bounds what it can write."""
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for k in range(3):
            packed.writestr(f"{k}.txt", b"0" * 10**6)
    usage = shutil.disk_usage(tmp_path)._replace(free=2_500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RunError, match=r"there: 3 MB are needed for bomb.zip, 2.5 MB are free; free some"):
        unpack(tmp_path / "bomb.zip", tmp_path / "there", lambda count: None)
    assert not (tmp_path / "there").exists()
    (tmp_path / "there").mkdir()
    (tmp_path / "there/1.txt").write_bytes(b"0" * 10**6)
    assert unpack(tmp_path / "bomb.zip", tmp_path / "there", lambda count: None) == 2


def test_what_a_killed_one_left_goes_and_hidden_files_of_the_user_stay(tmp_path: Path) -> None:
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/1.png", b"one")
    folder = tmp_path / "there" / "a"
    folder.mkdir(parents=True)
    (folder / ".1.png.abcdefgh.fasthebb").write_bytes(b"o")
    (folder / ".mine.abcdefgh").write_bytes(b"mine")
    assert unpack(archive, tmp_path / "there", lambda count: None) == 1
    assert sorted(path.name for path in folder.iterdir()) == [".mine.abcdefgh", "1.png"]
