"""What `fasthebb data prepare` says of a data set: its counts, gaps, unusual images and damaged images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fasthebb_cli.console.formats import counted
from fasthebb_cli.console.view import View
from fasthebb_cli.data.collection import Collection
from fasthebb_cli.errors import InputError
from fasthebb_cli.prepare.checking import Traits, misnamed
from fasthebb_cli.settings.tools import DataConfig

LISTED = 10  # classes that are named
OFFICIAL = {  # training and test images, classes
    "mnist": (60_000, 10_000, 10), "fashion_mnist": (60_000, 10_000, 10), "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100), "stl10": (5_000, 8_000, 10), "tiny_imagenet": (100_000, 10_000, 200),
    "imagenet": (1_281_167, 50_000, 1_000),
}  # fmt: skip


def counts_text(name: str, collection: Collection) -> str:
    parts = {part: getattr(collection, part) for part in ("train", "validation", "test", "unlabelled")}
    told = ", ".join(f"{len(chosen):,} {part}" for part, chosen in parts.items() if chosen is not None and len(chosen))
    word = "image" if told.startswith("1 ") and "," not in told else "images"
    return f"{name}: {told} {word}, {classes_text(collection.classes)}"


def warn_of_gaps(name: str, collection: Collection, view: View) -> None:
    """Warns where a known data set differs from its published counts, and of classes that have no images to test."""
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


def report_images(
    config: DataConfig, collection: Collection, damaged: Mapping[int, str], traits: Traits, view: View
) -> None:
    """Names the damaged images, and says what is unusual about the others.

    Raises:
        InputError: there are damaged images, and `dataset.on_bad_image` does not leave them out.
    """
    for i in sorted(damaged):
        view.warn(damaged[i])
    for trait, (count, first) in sorted(traits.items()):
        view.note(f"{count:,} {trait} (the first: {first})", "none")
    root = Path(config.dataset.root or "").expanduser()
    if collection.files is not None and config.dataset.root is not None and root.is_dir():
        for path in misnamed(root):
            view.warn(f"{path}: is an image that is not used, since its name has no ending of an image file")
    total = len(collection.source)
    if not damaged:
        view.note(f"{'' if total == 1 else 'all '}{counted(total, 'image')} can be read", "bold")
    elif config.dataset.on_bad_image == "error":
        told = (
            f"{len(damaged):,} of {counted(total, 'image')} can't be read; mend or remove them, "
            "or leave them out with dataset.on_bad_image=skip"
        )
        if config.out is not None:  # its packing was begun with these very images
            told += f"; {config.out} goes on only without them; to mend them, delete it, and check without out= first"
        raise InputError(told)
    else:
        verb = "is" if len(damaged) == 1 else "are"
        view.warn(f"{len(damaged):,} of {counted(total, 'image')} can't be read and {verb} left out")


def classes_text(classes: Sequence[str]) -> str:
    return counted(len(classes), "class", "classes") if classes else "no classes"
