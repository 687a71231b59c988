"""`fasthebb data prepare` unpacks, checks and packs a data set; conf/data.yaml has the settings.

archive -> unpack -> images -> counts and gaps -> decode every image -> packed set, or only what was found
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch
from rich.console import Console

from fasthebb_cli.console.formats import counted, size
from fasthebb_cli.console.progress import FolderProgress
from fasthebb_cli.console.view import View
from fasthebb_cli.data.collection import Collection
from fasthebb_cli.data.dataset import EMBEDDED, collection_of
from fasthebb_cli.data.imagenet import FOLDERS
from fasthebb_cli.data.loading import read_ahead
from fasthebb_cli.data.packed import Plan, packed_root
from fasthebb_cli.data.source import ImageFiles
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.prepare.archives import free_below, members_of, unpack
from fasthebb_cli.prepare.checking import Checked, Checker, Traits, add_traits
from fasthebb_cli.prepare.findings import counts_text, report_images, warn_of_gaps
from fasthebb_cli.prepare.info import tell
from fasthebb_cli.prepare.official_tars import unpack_official
from fasthebb_cli.prepare.packed_before import finished, verify
from fasthebb_cli.prepare.packing import Packing
from fasthebb_cli.run.directory import locked
from fasthebb_cli.settings.tools import DataConfig

CHUNK = 64  # images that are read at a time


def run_data(config: DataConfig, console: Console) -> None:
    """Runs `fasthebb data prepare` or `fasthebb data info`.

    Raises:
        InputError: images can't be read and may not be left out; and as `load_dataset`.
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
        verify(packed_before, config, view)
        return
    if config.dataset.name == "imagenet":
        unpack_official(config.dataset, view)
    collection = collection_of(replace(config.dataset, in_memory=False, on_bad_image="error"))
    view.note(counts_text(config.dataset.name, collection), "none")
    if config.out is not None and not len(collection.train):
        raise InputError(f"out: {config.dataset.root} has no training images, and packed images need some")
    warn_of_gaps(config.dataset.name, collection, view)
    if config.out is None:
        report_images(config, collection, *_check(config, collection, view, None), view)
    else:
        _pack(Path(config.out).expanduser().absolute(), config, collection, view)


def _unpack(archive: Path, config: DataConfig, view: View) -> None:
    """Unpacks a tar or zip file into `dataset.root`."""
    if config.dataset.root is None:
        raise InputError("dataset.root has no value: set it to the folder that the archive is to be unpacked into")
    folder = Path(config.dataset.root).expanduser().absolute()
    if packed_root(config.dataset) is not None:
        raise InputError(f"archive={archive}: dataset.root={folder} is a packed set; unpack it into another folder")
    with members_of(archive) as members:
        total = len(members)
        if not total:
            raise InputError(f"archive={archive}: holds no files")
        folders = {part for member in members for part in PurePosixPath(member.name).parts[:-1]}
        if config.dataset.name == "imagenet" and folders.isdisjoint(FOLDERS):
            raise InputError(
                f"archive={archive}: has no folder train or val; "
                f"put all official tar files into {folder} and leave archive out"
            )
        length = sum(member.length for member in members)
    there = f"{size(length)}; {size(free_below(folder))} are free in {folder}"
    view.note(f"{archive.name} holds {counted(total, 'file')}, {there}", "none")
    with FolderProgress(view, f"unpacking {archive.name}", total, "files") as progress:
        written = unpack(archive, folder, progress.advance)
    there = f"; {total - written:,} were there" if written < total else ""
    view.note(f"unpacked {written:,} of {total:,} files into {folder}{there}", "none")


def _pack(folder: Path, config: DataConfig, collection: Collection, view: View) -> None:
    """Checks all images and packs them into `out`, or resumes that."""
    root = config.dataset.root if collection.files is not None else None
    if root is not None and folder.resolve().is_relative_to(Path(root).expanduser().resolve()):
        raise InputError(f"out={folder} lies in the folder of the images; choose one beside it")
    if config.format == "encoded" and collection.files is None:
        raise InputError(f"format=encoded: dataset {config.dataset.name} has no image files; use format=uint8")
    source = collection.source
    plan = Plan(
        config.dataset.name, config.format, source.size, source.channels, len(source), collection.digest,
        fit=config.dataset.fit, background=config.dataset.background,
    )  # fmt: skip
    with locked(folder):
        packed = finished(folder, plan)
        if packed is None:
            with Packing(folder, plan) as packing:
                _say_size(folder, plan, collection, packing.done, view)
                report_images(config, collection, *_check(config, collection, view, packing), view)
                packed = packing.finish(collection)
            view.note(f"packed {counted(packed.images, 'image')}, {size(packed.length)}", "bold")
        else:
            view.note("packed before", "bold")
    view.note(f"use it with dataset={plan.name} dataset.root={folder}", "none")


def _say_size(folder: Path, plan: Plan, collection: Collection, done: int, view: View) -> None:
    """Says how large the packed set will be, before it is made.

    Args:
        done: bytes that are written already.

    Raises:
        RunError: the disk has no room for it.
    """
    image = plan.channels * plan.size**2
    total = plan.images * image
    if plan.format == "encoded" and collection.files is not None:
        total = sum(file.length for file in collection.files)
    free = shutil.disk_usage(folder).free
    how = f"{plan.size} x {plan.size}, {size(image)} an image" if plan.format == "uint8" else "as they are"
    view.note(f"{counted(plan.images, 'image')} {how}: {size(total)} in {folder}, where {size(free)} are free", "none")
    if total - done > free:
        raise RunError(f"out={folder}: {size(total - done)} are needed, {size(free)} are free; choose another disk")


def _check(
    config: DataConfig, collection: Collection, view: View, packing: Packing | None
) -> tuple[dict[int, str], Traits]:
    """Decodes all images that are not packed yet, and adds them to `packing`.

    Returns:
        Number and error of each damaged image, and the unusual traits of the others.
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
    """The images from number `done` on, in chunks; worker processes decode them if there are any."""
    source = collection.source
    checker = Checker(source, encoded=config.format == "encoded")
    chunks = list(torch.split(torch.arange(done, len(source)), CHUNK)) if done < len(source) else []
    if config.workers and chunks and isinstance(source, ImageFiles):
        return read_ahead(checker, chunks, min(config.workers, len(chunks)), pin=False)
    return map(checker.read, chunks)
