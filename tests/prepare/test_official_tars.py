"""The official tar files of ImageNet: only `fasthebb data prepare` unpacks them, whole and once."""

import hashlib
import io
import sys
import tarfile
from pathlib import Path
from shutil import copyfileobj
from typing import IO, Any

import numpy as np
import pytest
from scipy.io import savemat

from fasthebb_cli.data.dataset import load_dataset
from fasthebb_cli.errors import InputError
from fasthebb_cli.prepare import archives, official_tars
from fasthebb_cli.settings.config import DatasetConfig
from fasthebb_cli.settings.load import with_defaults
from tests.data.images import picture
from tests.prepare.conftest import Data

NAMES = {
    "train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar", "devkit": "ILSVRC2012_devkit_t12.tar.gz"
}  # fmt: skip
WNIDS = ("n2", "n3", "n1")  # in the order of their numbers, not of their names
NUMBERS = (2, 3, 1, 1)  # of the validation images


def encoded(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "JPEG")
    return file.getvalue()


def tarred(path: Path, files: dict[str, bytes]) -> bytes:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path.read_bytes()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Imitations of the three files: three classes of four images, four validation images."""
    made, root = tmp_path / "class.tar", tmp_path / "data"
    root.mkdir()
    classes = {
        f"{wnid}.tar": tarred(made, {f"{wnid}_{i}.JPEG": encoded(10 * k + i) for i in range(4)})
        for k, wnid in enumerate(WNIDS)
    }
    tarred(root / NAMES["train"], classes)
    validation = {f"ILSVRC2012_val_{i}.JPEG": encoded(100 + i) for i in range(len(NUMBERS))}
    tarred(root / NAMES["val"], dict(reversed(validation.items())))
    synsets = np.array(
        [(number, wnid, 0) for number, wnid in enumerate((*WNIDS, "n9"), 1)],
        [("ILSVRC2012_ID", "u2"), ("WNID", "O"), ("num_children", "u1")],
    )
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets}, do_compression=True)
    listed = "".join(f"{number}\n" for number in NUMBERS).encode()
    files = {"data/meta.mat": meta.getvalue(), "data/ILSVRC2012_validation_ground_truth.txt": listed}
    tarred(root / NAMES["devkit"], {f"ILSVRC2012_devkit_t12/{name}": content for name, content in files.items()})
    published = {part: (name, hashlib.md5((root / name).read_bytes()).hexdigest()) for part, name in NAMES.items()}
    monkeypatch.setattr("torchvision.datasets.imagenet.ARCHIVE_META", published)
    return root


def words(root: Path) -> list[str]:
    return ["prepare", "dataset=imagenet", f"dataset.root={root}", "dataset.size=8"]


def unpacked(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.JPEG")}


EXPECTED = {f"train/{wnid}/{wnid}_{i}.JPEG": encoded(10 * k + i) for k, wnid in enumerate(WNIDS) for i in range(4)} | {
    f"val/{WNIDS[number - 1]}/ILSVRC2012_val_{i}.JPEG": encoded(100 + i) for i, number in enumerate(NUMBERS)
}


def refuses_to_run(root: Path) -> None:
    with pytest.raises(InputError, match=rf"not unpacked.*; `fasthebb data prepare dataset=imagenet .*{root}` does it"):
        load_dataset(with_defaults(DatasetConfig, name="imagenet", root=str(root), size=8), 0)


@pytest.mark.parametrize("below", [".", "imagenet"])
def test_class_tars_and_validation_images_come_into_class_folders(data: Data, root: Path, below: str) -> None:
    if below != ".":
        (root / below).mkdir()
        for name in NAMES.values():
            (root / name).rename(root / below / name)
    refuses_to_run(root)
    code, out, err = data(*words(root))
    assert code == 0, err
    assert f"unpacked {NAMES['train']} into {root / below / 'train'}" in out
    assert "12 train, 4 test images, 3 classes" in out
    assert "all 16 images can be read" in out
    assert unpacked(root / below) == EXPECTED
    for name in NAMES.values():
        (root / below / name).unlink()
    code, out, _ = data(*words(root))
    assert code == 0
    assert "unpacked" not in out


@pytest.mark.parametrize("files", [0, 5, 12, 14])
def test_it_goes_on_where_it_was_killed(data: Data, root: Path, files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0

    def full_at_some_time(source: IO[bytes], target: IO[bytes]) -> None:
        nonlocal written
        if written == files:
            target.write(source.read(50))
            raise OSError(28, "No space left on device")
        written += 1
        copyfileobj(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(archives, "copyfileobj", full_at_some_time)
        code, _, err = data(*words(root))
    assert (code, err.count("\n")) == (1, 1)
    assert (root / "train").is_dir() == (files >= 12)
    assert not (root / "val").is_dir()
    assert len(unpacked(root)) == files
    refuses_to_run(root)
    before = sorted(path.stat().st_mtime_ns for path in root.rglob("n*/*.JPEG"))
    compared = list[Path]()
    with monkeypatch.context() as patched:
        patched.setattr(official_tars, "_compare", lambda path, md5, view: compared.append(path))
        code, out, err = data(*words(root))
    assert code == 0, err
    assert [path.name for path in compared] == [NAMES["devkit"], *([] if files >= 12 else [NAMES["val"]])]
    assert "all 16 images can be read" in out
    assert unpacked(root) == EXPECTED
    after = sorted(path.stat().st_mtime_ns for path in root.rglob("n*/*.JPEG"))
    assert after[:files] == before, "what was there was written again"


@pytest.mark.parametrize("part", NAMES)
def test_a_damaged_or_missing_file_is_named(data: Data, root: Path, part: str) -> None:
    path = root / NAMES[part]
    whole = path.read_bytes()
    path.write_bytes(whole[:600] + b"\1" + whole[601:])
    code, _, err = data(*words(root))
    assert (code, err.count("\n")) == (2, 1)
    assert f"{path}: is damaged: its md5 sum is not the published" in err
    assert not list(root.glob("val*"))
    path.unlink()
    code, _, err = data(*words(root))
    assert (code, err.count("\n")) == (2, 1)
    assert f"there is no {path}, needed to unpack" in err


def test_the_extra_is_named_where_scipy_is_absent(data: Data, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    code, _, err = data(*words(root))
    assert code == 2
    assert "is read with scipy: pip install 'fasthebb[imagenet]'" in err
    assert not list(root.glob("train*"))


def test_leftovers_are_refused_before_more_is_unpacked(data: Data, root: Path) -> None:
    (root / "train").mkdir()
    (root / "train/n2.tar").touch()
    code, _, err = data(*words(root))
    assert code == 2
    assert "n2.tar: lies in no class folder" in err
    assert not list(root.glob("val*"))


def test_a_folder_that_cannot_be_written(data: Data, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    code, _, err = data(*words(root))
    assert code == 2
    assert f"{root}: can't be written; link its tar files into a folder of your own" in err


@pytest.mark.parametrize("part", NAMES)
def test_an_official_file_is_no_archive_of_folders(data: Data, root: Path, tmp_path: Path, part: str) -> None:
    there = tmp_path / "there"
    code, _, err = data(*words(there), f"archive={root / NAMES[part]}")
    assert (code, err.count("\n")) == (2, 1)
    assert f"has no folder train or val; put all official tar files into {there} and leave archive out" in err
    assert not there.exists()


def test_two_at_once_are_one_too_many(data: Data, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(*given: Any) -> bool:
        return False

    monkeypatch.setattr("fasthebb_cli.run.directory._try_lock", held)
    code, _, err = data(*words(root))
    assert code == 2
    assert f"{root / 'train'} is being worked on by" in err
