"""Unpacks the official tar files of ImageNet 2012 into train/<wnid>/ and val/<wnid>/ beside them.

Each part is unpacked into train.partial or val.partial, which is renamed when it is whole. So nothing takes what a kill
leaves for a data set, and the next start resumes it. Before that folder is made, the tar file is compared with its
published md5 sum; a resumed start does not compare it again.
"""

import hashlib
import io
import os
from pathlib import Path, PurePosixPath

from fasthebb_cli.console.progress import FolderProgress
from fasthebb_cli.console.view import View
from fasthebb_cli.data.imagenet import FOLDERS, refuse_leftovers, still_packed
from fasthebb_cli.errors import InputError
from fasthebb_cli.prepare.archives import members_inside, members_of, unpack_members
from fasthebb_cli.run.directory import locked
from fasthebb_cli.settings.config import DatasetConfig

MEGABYTE = 10**6


def unpack_official(config: DatasetConfig, view: View) -> None:
    """Unpacks the official tar files in `dataset.root`, if the folder of a part is missing.

    Raises:
        InputError: a file is missing or damaged, the folder can't be written, or scipy is absent.
        RunError: a file can't be written; the next start goes on.
    """
    top = still_packed(config)
    if top is None:
        return
    from torchvision.datasets.imagenet import ARCHIVE_META  # imported here, since that takes seconds

    if not os.access(top, os.W_OK):
        raise InputError(f"{top}: can't be written; link its tar files into a folder of your own to unpack them there")
    with locked(top / "train"):
        parts = [part for part in FOLDERS if not (top / part).is_dir()]
        for part in set(FOLDERS) - set(parts):
            refuse_leftovers(top / part)
        for key in [*parts, "devkit"] if "val" in parts else parts:
            path = top / ARCHIVE_META[key][0]
            if not path.is_file():
                raise InputError(f"dataset imagenet: there is no {path}, needed to unpack {' and '.join(parts)}")
        wnids = []
        if "val" in parts:  # first, so that its errors show at once
            name, md5 = ARCHIVE_META["devkit"]
            _compare(top / name, md5, view)
            wnids = _validation_wnids(top / name)
        for part in parts:
            name, md5 = ARCHIVE_META[part]
            begun = top / f"{part}.partial"
            if not begun.is_dir():
                _compare(top / name, md5, view)
                begun.mkdir()
            if part == "train":
                _unpack_train(top / name, begun, view)
            else:
                _unpack_val(top / name, wnids, begun, view)
            begun.rename(top / part)
            view.note(f"unpacked {name} into {top / part}", "none")


def _unpack_train(archive: Path, folder: Path, view: View) -> None:
    """Unpacks the tar file of each class inside the archive into a folder of its name."""
    with members_of(archive) as classes:
        total = sum(member.length for member in classes)
        with FolderProgress(view, f"unpacking {archive.name}", total // MEGABYTE, "MB") as progress:
            done = 0
            for member in classes:
                with members_inside(member, archive) as images:
                    wnid = PurePosixPath(member.name).stem
                    named = [image._replace(name=f"{wnid}/{image.name}") for image in images]
                    unpack_members(named, archive / member.name, folder)
                done += member.length
                progress.advance(done // MEGABYTE - progress.done)


def _unpack_val(archive: Path, wnids: list[str], folder: Path, view: View) -> None:
    """Unpacks the images into folders of their classes; `wnids` has a class per image, in the order of their names."""
    with members_of(archive) as images:
        images.sort(key=lambda image: image.name)
        named = [image._replace(name=f"{wnid}/{image.name}") for image, wnid in zip(images, wnids, strict=True)]
        with FolderProgress(view, f"unpacking {archive.name}", len(named)) as progress:
            unpack_members(named, archive, folder, progress.advance)


def _validation_wnids(devkit: Path) -> list[str]:
    """The class of each validation image, in the order of their names."""
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise InputError("the devkit of ImageNet is read with scipy: pip install 'fasthebb[imagenet]'") from error
    content = {}
    with members_of(devkit) as members:
        for member in members:
            if member.name.endswith(("data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt")):
                with member.open() as file:
                    content[PurePosixPath(member.name).name] = file.read()
    synsets = loadmat(io.BytesIO(content["meta.mat"]), squeeze_me=True)["synsets"]
    wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    return [wnids[int(number)] for number in content["ILSVRC2012_validation_ground_truth.txt"].split()]


def _compare(archive: Path, published: str, view: View) -> None:
    """Compares a file with its published md5 sum, and shows how far it is.

    Raises:
        InputError: the sums differ.
    """
    hashed, done = hashlib.md5(usedforsecurity=False), 0
    with (
        archive.open("rb") as file,
        FolderProgress(view, f"comparing {archive.name}", archive.stat().st_size // MEGABYTE, "MB") as progress,
    ):
        while piece := file.read(16 * MEGABYTE):
            hashed.update(piece)
            done += len(piece)
            progress.advance(done // MEGABYTE - progress.done)
    if hashed.hexdigest() != published:
        raise InputError(f"{archive}: is damaged: its md5 sum is not the published {published}; get it again")
