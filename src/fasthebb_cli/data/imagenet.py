"""ImageNet and Tiny ImageNet in the layouts that they are distributed in. Their validation images serve as test set."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

from fasthebb_cli.config import DatasetConfig
from fasthebb_cli.data.collection import Collection, ImageFile, Table, from_files, missing, root_of
from fasthebb_cli.data.folders import SUFFIXES, class_folders, labelled, list_images
from fasthebb_cli.errors import InputError

TRAIN_TAR = "ILSVRC2012_img_train.tar"


def imagenet(config: DatasetConfig) -> Collection:
    """ILSVRC 2012 from root/{train,val}/<wnid>/ or root/imagenet/{train,val}/<wnid>/.

    The official tar files in the same places are unpacked there by torchvision, once, if the folders are missing.

    Raises:
        InputError: neither is there.
    """
    tops = (root_of(config), root_of(config) / "imagenet")
    packed = [top for top in tops if (top / TRAIN_TAR).is_file()]
    found = [top for top in tops if (top / "train").is_dir() and (top / "val").is_dir()]
    if not found and packed:
        _unpack(packed[0])
        found = packed
    if not found:
        raise missing(config, f"folders train and val, nor {TRAIN_TAR} and its companions,", download=False)
    top = found[0]
    classes = class_folders(top / "train")
    if not classes:
        raise missing(config, "class folders with images below train", download=False)
    parts = {"train": labelled(top / "train", classes, top), "test": labelled(top / "val", classes, top)}
    return from_files(parts, classes, config, table=Table(1_200_000, 1_281_167))


def _unpack(top: Path) -> None:
    try:
        for split in ("train", "val"):
            from torchvision import datasets  # here, since it takes seconds to import

            datasets.ImageNet(top, split=split)
    except (RuntimeError, OSError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"dataset imagenet: could not unpack the tar files in {top}: {reason}") from error


def tiny_imagenet(config: DatasetConfig) -> Collection:
    """Tiny ImageNet from the folder tiny-imagenet-200, from a folder that holds it, or from the zip there.

    The zip is read into memory as it is; nothing is unpacked. root may also be the zip itself.

    Raises:
        InputError: it is not there, or incomplete.
    """
    root = root_of(config)
    folder = next((top for top in (root, root / "tiny-imagenet-200") if (top / "train").is_dir()), None)
    archive = root if root.suffix == ".zip" else root / "tiny-imagenet-200.zip"
    table = Table(90_000, 100_000)
    if folder is not None:
        parts, classes = _tiny_parts(folder, list_images(folder), lambda path: Path(path).read_bytes())
        return from_files(parts, classes, config, table=table)
    if not archive.is_file():
        raise missing(config, "folder tiny-imagenet-200 and no tiny-imagenet-200.zip", download=False)
    if config.in_memory is False:
        raise InputError(f"dataset.in_memory=false: {archive} is read into memory; unpack it to read it file by file")
    try:
        with zipfile.ZipFile(archive) as packed:
            return _from_zip(archive, packed, config, table)
    except zipfile.BadZipFile as error:
        raise InputError(f"{archive}: can't be read as a zip file: {error}") from error


def _from_zip(archive: Path, packed: zipfile.ZipFile, config: DatasetConfig, table: Table) -> Collection:
    names = [info.filename for info in packed.infolist()]
    wnids = next((name for name in names if name.split("/")[-1] == "wnids.txt"), "tiny-imagenet-200/wnids.txt")
    inside = wnids.removesuffix("wnids.txt")

    def read(path: str) -> bytes:
        return packed.read(path.removeprefix(f"{archive}{os.sep}"))

    files = [
        ImageFile(info.filename.removeprefix(inside), str(archive / info.filename), info.file_size)
        for info in packed.infolist()
        if info.filename.startswith(inside) and info.filename.lower().endswith(SUFFIXES)
    ]
    parts, classes = _tiny_parts(archive / inside, sorted(files), read)
    return from_files(parts, classes, config, read=read, table=table)


def _tiny_parts(
    top: Path, files: list[ImageFile], read: Callable[[str], bytes]
) -> tuple[dict[str, list[ImageFile]], tuple[str, ...]]:
    """Files of train/<wnid>/images and, as test set, of val/images with the classes in val/val_annotations.txt."""
    wnids = sorted(_text(top / "wnids.txt", read).split())
    number = {wnid: k for k, wnid in enumerate(wnids)}
    train = [file for file in files if file.name.startswith("train/")]
    folders = {file.name.split("/")[1] for file in train}
    if folders != number.keys():
        wnid = min(folders ^ number.keys())
        problem = "is not listed in wnids.txt" if wnid in folders else "has no images, but is listed in wnids.txt"
        raise InputError(f"{top / 'train' / wnid}: {problem}; the copy of tiny_imagenet is not complete")
    by_name = {file.name: file for file in files}
    test = []
    for line, row in enumerate(_text(top / "val/val_annotations.txt", read).splitlines(), 1):
        name, wnid = [*row.split("\t"), ""][:2]
        file = by_name.get(f"val/images/{name}")
        if file is None or wnid not in number:
            problem = f"unknown class {wnid!r}" if file else f"val/images/{name} is missing"
            raise InputError(f"{top / 'val/val_annotations.txt'}, line {line}: {problem}")
        test.append(file._replace(label=number[wnid]))
    if not test:
        raise InputError(f"{top / 'val/val_annotations.txt'}: lists no images")
    parts = {"train": [file._replace(label=number[file.name.split("/")[1]]) for file in train], "test": sorted(test)}
    return parts, tuple(wnids)


def _text(path: Path, read: Callable[[str], bytes]) -> str:
    try:
        return read(str(path)).decode()
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: there is no such file; the copy of tiny_imagenet is not complete") from error
