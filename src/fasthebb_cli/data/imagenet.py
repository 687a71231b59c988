"""ImageNet and Tiny ImageNet in the layouts that they come in. Their validation images are used as test images."""

import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from fasthebb_cli.data.collection import Collection, Table, from_files, missing, root_of
from fasthebb_cli.data.files import FileList, ImageFile, read_list
from fasthebb_cli.data.walk import SUFFIXES, class_folders, images_by_class, list_images, subfolders
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.config import DatasetConfig

FOLDERS = ("train", "val")
KAGGLE = "ILSVRC/Data/CLS-LOC"  # where Kaggle's copy has these folders
SOLUTION = "LOC_val_solution.csv"  # the classes of its images in val
_LINE = "ILSVRC2012_val_00000001,n01440764 ..."
TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")


def imagenet(config: DatasetConfig) -> Collection:
    """ILSVRC 2012 from {train,val}/<wnid>/ in root, root/imagenet or root/ILSVRC/Data/CLS-LOC.

    The images of val may lie in no class folders, as in Kaggle's copy: then LOC_val_solution.csv in root, or beside
    ILSVRC, val or train, has their classes.

    Raises:
        InputError: the folders are missing or incomplete.
    """
    top = next((top for top in _tops(config) if all((top / name).is_dir() for name in FOLDERS)), None)
    if top is None:
        if packed := still_packed(config):
            raise InputError(
                f"dataset imagenet: the tar files in {packed} are not unpacked, or not to the end; "
                f"`fasthebb data prepare dataset=imagenet dataset.root={root_of(config)}` does it, or goes on with it"
            )
        raise missing(config, f"folders train and val, nor {TARS[0]} and its companions,", download=False)
    refuse_leftovers(top / "train")
    classes = class_folders(top / "train")
    if not classes:
        raise missing(config, "class folders with images below train", download=False)
    test: Iterable[ImageFile]
    solution = _solution(root_of(config), top)
    if solution is None or subfolders(top / "val"):
        if not subfolders(top / "val"):
            raise InputError(
                f"{top / 'val'}: has no class folders; if its images lie in it as they come from Kaggle, put "
                f"{SOLUTION} into {root_of(config)}, which has their classes"
            )
        refuse_leftovers(top / "val")
        test = images_by_class(top / "val", classes, top)
    else:
        test = _solved(top, solution, classes)
    parts = {"train": images_by_class(top / "train", classes, top), "test": test}
    return from_files(parts, classes, config, table=Table(1_200_000, 1_281_167))


def _solution(root: Path, top: Path) -> Path | None:
    """The file of the classes of the images in val; None: there is none."""
    places = (root, top, *top.parents[: len(Path(KAGGLE).parts)])
    return next((place / SOLUTION for place in places if (place / SOLUTION).is_file()), None)


def _solved(top: Path, solution: Path, classes: Sequence[str]) -> list[ImageFile]:
    """The images of top/val, named as if they lay in folders of their classes, which a file has: in each line an
    image's name, a comma, the wnid and a box.

    Raises:
        InputError: a line has no known class, or an image has no line or a line no image.
    """
    number, told = {wnid: k for k, wnid in enumerate(classes)}, dict[str, str]()
    for line, text in enumerate(read_list(SOLUTION, solution, f"lines such as {_LINE}").splitlines(), 1):
        name, _, wnid = text.replace(",", " ").partition(" ")
        wnid = (wnid.split() or [""])[0]
        if line == 1 and name == "ImageId":
            continue
        if wnid not in number:
            raise InputError(f"{solution}, line {line}: unknown class {wnid!r}; expected lines such as {_LINE}")
        if name in told:
            raise InputError(f"{solution}, line {line}: {name} is listed twice")
        told[name] = wnid
    found = []
    for file in list_images(top / "val"):
        base = os.path.basename(file.name)
        wnid = told.pop(os.path.splitext(base)[0], "")
        if not wnid:
            raise InputError(f"{file.path}: has no line in {solution}, or two images have this name")
        found.append(file._replace(name=f"val/{wnid}/{base}", label=number[wnid]))
    if told:
        raise InputError(f"{solution}: {min(told)} is no image in {top / 'val'}; the copy of imagenet is not complete")
    return sorted(found)


def still_packed(config: DatasetConfig) -> Path | None:
    """The folder of the official tar files if they are not unpacked; None if they are, or if there are none."""
    tops = _tops(config)
    if any(all((top / name).is_dir() for name in FOLDERS) for top in tops):
        return None
    return next((top for top in tops if any((top / name).is_file() for name in TARS)), None)


def refuse_leftovers(folder: Path) -> None:
    """Detects an interrupted unpacking: other programs unpack the tar files in place, and if one is killed, files lie
    beside the class folders.

    Raises:
        InputError: there are such files.
    """
    found = (path for path in folder.iterdir() if path.name.lower().endswith((".tar", *SUFFIXES)) and path.is_file())
    beside = min((path for path in found if not path.name.startswith(".")), default=None)
    if beside is not None:
        raise InputError(
            f"{beside}: lies in no class folder, as where unpacking was broken off; "
            f"move it into one, or delete {folder} and unpack it again"
        )


def _tops(config: DatasetConfig) -> tuple[Path, ...]:
    root = root_of(config)
    return root, root / "imagenet", root / KAGGLE


def tiny_imagenet(config: DatasetConfig) -> Collection:
    """Tiny ImageNet from the folder tiny-imagenet-200 or from tiny-imagenet-200.zip, which is read without unpacking.

    dataset.root is the folder or zip itself, or the folder that holds it.

    Raises:
        InputError: it is missing or incomplete.
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
    read = ZipMembers(archive)
    try:
        members = read.opened().infolist()
    except zipfile.BadZipFile as error:
        raise InputError(f"{archive}: can't be read as a zip file: {error}") from error
    names = (info.filename for info in members)
    wnids = next((name for name in names if name.split("/")[-1] == "wnids.txt"), "tiny-imagenet-200/wnids.txt")
    inside = wnids.removesuffix("wnids.txt")
    files = [
        ImageFile(
            info.filename.removeprefix(inside), str(archive / info.filename), info.file_size, changed=1 + info.CRC
        )
        for info in members
        if info.filename.startswith(inside) and info.filename.lower().endswith(SUFFIXES)
    ]
    parts, classes = _tiny_parts(archive / inside, sorted(files), read)
    return from_files(parts, classes, config, read=read, table=table)


class ZipMembers:
    """Path below a zip file -> content. Each worker process opens the zip file itself."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self._zip: zipfile.ZipFile | None = None

    def __call__(self, path: str) -> bytes:
        return self.opened().read(path.removeprefix(f"{self.archive}{os.sep}"))

    def opened(self) -> zipfile.ZipFile:
        if self._zip is None:
            self._zip = zipfile.ZipFile(self.archive)
        return self._zip

    def __getstate__(self) -> dict[str, object]:
        return {"archive": self.archive, "_zip": None}


def _tiny_parts(
    top: Path, files: Iterable[ImageFile], read: Callable[[str], bytes]
) -> tuple[dict[str, FileList], tuple[str, ...]]:
    """Training files in train/<wnid>/images, and test files in val/images with classes in val/val_annotations.txt, or
    sorted into val/<wnid> or val/<wnid>/images.
    """
    wnids = sorted(_text(top / "wnids.txt", read).split())
    number = {wnid: k for k, wnid in enumerate(wnids)}
    train, folders, test_files = FileList(), set[str](), dict[str, ImageFile]()
    for file in files:
        part, _, rest = file.name.partition("/")
        if part == "train":
            wnid = rest.split("/")[0]
            folders.add(wnid)
            train.append(file._replace(label=number.get(wnid, -1)))
        elif part == "val":
            test_files[file.name] = file
    if folders != number.keys():
        wnid = min(folders ^ number.keys())
        problem = "is not listed in wnids.txt" if wnid in folders else "has no images, but is listed in wnids.txt"
        raise InputError(f"{top / 'train' / wnid}: {problem}; the copy of tiny_imagenet is not complete")
    test = []
    if any(name.split("/")[1] in number for name in test_files):
        test = _sorted_by_class(top, test_files.values(), number)
        return {"train": train, "test": FileList(test)}, tuple(wnids)
    for line, row in enumerate(_text(top / "val/val_annotations.txt", read).splitlines(), 1):
        name, wnid = [*row.split("\t"), ""][:2]
        found = test_files.get(f"val/images/{name}")
        if found is None or wnid not in number:
            problem = f"unknown class {wnid!r}" if found else f"val/images/{name} is missing, or listed twice"
            raise InputError(f"{top / 'val/val_annotations.txt'}, line {line}: {problem}")
        del test_files[found.name]
        test.append(found._replace(label=number[wnid]))
    if not test:
        raise InputError(f"{top / 'val/val_annotations.txt'}: lists no images")
    if test_files:
        raise InputError(f"{top / min(test_files)}: has no line in val/val_annotations.txt; write one, or remove it")
    return {"train": train, "test": FileList(sorted(test))}, tuple(wnids)


def _sorted_by_class(top: Path, files: Iterable[ImageFile], number: Mapping[str, int]) -> list[ImageFile]:
    """The test images of a copy in which each lies in the folder of its class, named as in the official layout."""
    found = dict[str, ImageFile]()
    for file in files:
        wnid, name = file.name.split("/")[1], f"val/images/{os.path.basename(file.name)}"
        if wnid not in number:
            raise InputError(f"{top / file.name}: lies in no folder of a class, as others below val do")
        if name in found:
            raise InputError(f"{top / file.name} and {found[name].path}: two test images have the same name")
        found[name] = file._replace(name=name, label=number[wnid])
    return sorted(found.values())


def _text(path: Path, read: Callable[[str], bytes]) -> str:
    try:
        return read(str(path)).decode()
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: there is no such file; the copy of tiny_imagenet is not complete") from error
