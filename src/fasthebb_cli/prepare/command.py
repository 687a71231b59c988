"""`fasthebb data prepare` checks the images of a data set and packs them; conf/data.yaml has the settings."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch
from rich.console import Console

from fasthebb_cli.console.formats import counted
from fasthebb_cli.console.progress import FolderProgress
from fasthebb_cli.console.view import View
from fasthebb_cli.data.collection import Collection
from fasthebb_cli.data.dataset import EMBEDDED, collection_of
from fasthebb_cli.data.imagenet import FOLDERS
from fasthebb_cli.data.loading import read_ahead
from fasthebb_cli.data.packed import Plan, packed_root, read_packed
from fasthebb_cli.data.source import ImageFiles
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.prepare.archives import members_of, unpack
from fasthebb_cli.prepare.checking import Checked, Checker, Traits, add_traits, misnamed
from fasthebb_cli.prepare.info import tell
from fasthebb_cli.prepare.official_tars import unpack_official
from fasthebb_cli.prepare.packing import Packing, damaged_block, finished
from fasthebb_cli.run.directory import locked
from fasthebb_cli.settings.tools import DataConfig

CHUNK = 64  # images that are read at a time
LISTED = 10  # classes that are named
OFFICIAL = {  # training and test images, classes
    "mnist": (60_000, 10_000, 10), "fashion_mnist": (60_000, 10_000, 10), "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100), "stl10": (5_000, 8_000, 10), "tiny_imagenet": (100_000, 10_000, 200),
    "imagenet": (1_281_167, 50_000, 1_000),
}  # fmt: skip


def run_data(config: DataConfig, console: Console) -> None:
    """Does what is asked.

    Raises:
        InputError: images that can't be read, unless they shall be left out; and as `load_dataset`.
        RunError: the packed set can't be written.
    """
    {"prepare": prepare, "info": tell}[config.what](config, View(console))


def prepare(config: DataConfig, view: View) -> None:
    embedded = config.dataset.name in EMBEDDED
    for key in ("archive", "out"):
        if embedded and getattr(config, key) is not None:
            raise InputError(
                f"{key}: dataset {config.dataset.name} comes with a package and is read in an instant; leave it out"
            )
    if config.archive is not None:
        _unpack(Path(config.archive).expanduser(), config, view)
    if not embedded and (packed_before := packed_root(config.dataset)) is not None:
        _verify_packed(packed_before, config, view)
        return
    if config.dataset.name == "imagenet":
        unpack_official(config.dataset, view)
    collection = collection_of(replace(config.dataset, in_memory=False, on_bad_image="error"))
    view.note(_counts(config.dataset.name, collection), "none")
    _warn_of_gaps(config.dataset.name, collection, view)
    if config.out is None:
        damaged, traits = _check(config, collection, view, None)
        _report(config, collection, damaged, traits, view)
        return
    folder = Path(config.out).expanduser().absolute()
    root = config.dataset.root if collection.files is not None else None
    if root is not None and folder.resolve().is_relative_to(Path(root).expanduser().resolve()):
        raise InputError(f"out={folder} lies in the folder of the images; choose one beside it")
    plan = _plan(config, collection)
    with locked(folder):
        packed = finished(folder, plan)
        if packed is None:
            with Packing(folder, plan) as packing:
                _say_size(folder, plan, collection, packing.done, view)
                damaged, traits = _check(config, collection, view, packing)
                _report(config, collection, damaged, traits, view)
                packed = packing.finish(collection)
            view.note(f"packed {counted(packed.images, 'image')}, {_bytes(packed.length)}", "bold")
        else:
            view.note("packed before", "bold")
    view.note(f"use it with dataset={plan.name} dataset.root={folder}", "none")


def _unpack(archive: Path, config: DataConfig, view: View) -> None:
    if config.dataset.root is None:
        raise InputError("dataset.root has no value: set it to the folder that the archive is to be unpacked into")
    folder = Path(config.dataset.root).expanduser().absolute()
    if packed_root(config.dataset) is not None:
        raise InputError(f"archive={archive}: dataset.root={folder} is a packed set; unpack it into another folder")
    with members_of(archive) as members:
        total = len(members)
        if not total:
            raise InputError(f"archive={archive}: holds no files")
        if config.dataset.name == "imagenet" and not any(_below(member.name, FOLDERS) for member in members):
            raise InputError(
                f"archive={archive}: has no folder train or val; "
                f"of the official tar files put all into {folder} and leave archive out"
            )
    with FolderProgress(view, f"unpacking {archive.name}", total, "files") as progress:
        written = unpack(archive, folder, progress.advance)
    there = f"; {total - written:,} were there" if written < total else ""
    view.note(f"unpacked {written:,} of {total:,} files into {folder}{there}", "none")


def _below(name: str, folders: Sequence[str]) -> bool:
    return any(part in folders for part in PurePosixPath(name).parts[:-1])


def _plan(config: DataConfig, collection: Collection) -> Plan:
    if config.format == "encoded" and collection.files is None:
        raise InputError(f"format=encoded: dataset {config.dataset.name} has no image files; use format=uint8")
    source = collection.source
    return Plan(config.dataset.name, config.format, source.size, source.channels, len(source), collection.digest)


def _say_size(folder: Path, plan: Plan, collection: Collection, done: int, view: View) -> None:
    """Says how large the packed set will be, before it is made.

    Raises:
        RunError: there is no room for it.
    """
    image = plan.channels * plan.size**2
    total = plan.images * image
    if plan.format == "encoded" and collection.files is not None:
        total = sum(file.length for file in collection.files)
        image = total // max(1, plan.images)
    free = shutil.disk_usage(folder).free
    how = f"{plan.size} x {plan.size}, {_bytes(image)} an image" if plan.format == "uint8" else "as they are"
    view.note(
        f"{counted(plan.images, 'image')} {how}: {_bytes(total)} in {folder}, where {_bytes(free)} are free", "none"
    )
    if total - done > free:
        raise RunError(f"out={folder}: {_bytes(total - done)} are needed, {_bytes(free)} are free; choose another disk")


def _check(
    config: DataConfig, collection: Collection, view: View, packing: Packing | None
) -> tuple[dict[int, str], Traits]:
    """Decodes all images that are not packed yet, and packs them.

    Returns:
        Number and error of each damaged one, and what is unusual.
    """
    damaged = packing.damaged() if packing else {}
    traits = packing.traits() if packing else {}
    done = packing.images if packing else 0
    if done:
        view.note(f"goes on after {done:,} images", "none")
    title = "checking" if packing is None else "packing"
    with FolderProgress(view, title, len(collection.source)) as progress:
        progress.advance(done)
        for checked in _stream(config, collection, done):
            damaged |= checked.damaged
            add_traits(traits, checked.traits)
            if packing is not None:
                packing.add(checked)
            progress.advance(checked.images)
    return damaged, traits


def _stream(config: DataConfig, collection: Collection, done: int) -> Iterator[Checked]:
    source = collection.source
    checker = Checker(source, encoded=config.format == "encoded")
    chunks = list(torch.split(torch.arange(done, len(source)), CHUNK)) if done < len(source) else []
    if config.workers and chunks and isinstance(source, ImageFiles):
        return read_ahead(checker, chunks, min(config.workers, len(chunks)), pin=False)
    return map(checker.read, chunks)


def _report(config: DataConfig, collection: Collection, damaged: dict[int, str], traits: Traits, view: View) -> None:
    """Says what is unusual, and names what is damaged.

    Raises:
        InputError: there are damaged images that shall not be left out.
    """
    for i in sorted(damaged):
        view.warn(damaged[i])
    for trait, (count, first) in sorted(traits.items()):
        view.note(f"{count:,} {trait} (the first: {first}): read as RGB, upright", "none")
    root = Path(config.dataset.root or "").expanduser()
    if collection.files is not None and config.dataset.root is not None and root.is_dir():
        for path in misnamed(root):
            view.warn(f"{path}: is an image that is not used, since its name doesn't end as one's does")
    total = len(collection.source)
    if not damaged:
        view.note(f"{'' if total == 1 else 'all '}{counted(total, 'image')} can be read", "bold")
    elif config.dataset.on_bad_image == "error":
        told = (
            f"{len(damaged):,} of {counted(total, 'image')} can't be read; mend or remove them, "
            "or leave them out with dataset.on_bad_image=skip"
        )
        if config.out is not None:  # the packing was begun with the images as they are
            told += f"; {config.out} goes on with the latter only: to mend, delete it, and check without out= first"
        raise InputError(told)
    else:
        verb = "is" if len(damaged) == 1 else "are"
        view.warn(f"{len(damaged):,} of {counted(total, 'image')} can't be read and {verb} left out")


def _verify_packed(root: Path, config: DataConfig, view: View) -> None:
    """Compares a packed set with the checksums that it was written with.

    Raises:
        InputError: it is damaged, or shall be packed again.
    """
    if config.out is not None:
        raise InputError(f"dataset.root={root} is packed already; give the folder of the images to pack them again")
    packed = read_packed(root)
    block = damaged_block(root, packed.blocks)
    if block is not None:
        raise InputError(f"{root}: block {block} of its images is not what was packed; pack it again")
    collection_of(config.dataset)
    parts = ", ".join(f"{count:,} {part}" for part, count in packed.counts.items())
    view.note(f"{packed.plan.name}, packed ({packed.plan.format}): {parts}, {_classes(packed.classes)}", "none")
    view.left_out(packed.left_out)
    view.note(f"every block is as it was written ({len(packed.blocks):,})", "bold")


def _counts(name: str, collection: Collection) -> str:
    parts = {part: getattr(collection, part) for part in ("train", "validation", "test", "unlabelled")}
    told = ", ".join(f"{len(chosen):,} {part}" for part, chosen in parts.items() if chosen is not None and len(chosen))
    word = "image" if told.startswith("1 ") and "," not in told else "images"
    return f"{name}: {told} {word}, {_classes(collection.classes)}"


def _warn_of_gaps(name: str, collection: Collection, view: View) -> None:
    """Says where a known set has not its published numbers, and which classes can't be tested."""
    found = (len(collection.train), 0 if collection.test is None else len(collection.test), len(collection.classes))
    whats, published = ("train images", "test images", "classes"), OFFICIAL.get(name, found)
    differences = []
    for what, count, total in zip(whats, found, published, strict=True):
        if count < total:
            differences.append(f"{total - count:,} of {total:,} {what} missing")
        elif count > total:
            differences.append(f"{count - total:,} more than {total:,} {what}")
    if differences:
        view.warn(f"differs from {name} as published: {', '.join(differences)}")
    for part in ("test", "validation"):
        chosen = getattr(collection, part)
        if chosen is None:
            continue
        present = set(collection.labels[chosen.long()].tolist())
        absent = [known for label, known in enumerate(collection.classes) if label not in present]
        if absent:
            more = f" and {len(absent) - LISTED:,} more" if len(absent) > LISTED else ""
            view.warn(
                f"{len(absent):,} of {len(collection.classes):,} classes without {part} images: "
                f"{', '.join(absent[:LISTED])}{more}"
            )


def _classes(classes: Sequence[str]) -> str:
    return counted(len(classes), "class", "classes") if classes else "no classes"


def _bytes(count: float) -> str:
    """A number of bytes as people write it: 132 kB, 1.2 MB, 170 GB."""
    unit = 0
    while count >= 999.5 and unit < 4:
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[unit]}"
