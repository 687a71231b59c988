"""Folders that hold a packed data set already, whole or begun: what they hold, and whether it is still as written."""

from pathlib import Path

from fasthebb_cli.console.view import View
from fasthebb_cli.data.dataset import collection_of
from fasthebb_cli.data.packed import PACKED_FILE, Packed, Plan, damaged_block, read_packed
from fasthebb_cli.errors import InputError
from fasthebb_cli.prepare.findings import classes_text
from fasthebb_cli.settings.tools import DataConfig


def verify(root: Path, config: DataConfig, view: View) -> None:
    """Compares a packed set with the checksums in it.

    Raises:
        InputError: it is damaged, or `out` asks to pack it again.
    """
    if config.out is not None:
        raise InputError(f"dataset.root={root} is packed already; give the folder of the images to pack them again")
    packed = read_packed(root)
    block = damaged_block(root, packed.blocks)
    if block is not None:
        raise InputError(f"{root}: block {block} of its images is not what was packed; pack it again")
    collection_of(config.dataset)
    parts = ", ".join(f"{count:,} {part}" for part, count in packed.counts.items())
    view.note(f"{packed.plan.name}, packed ({packed.plan.format}): {parts}, {classes_text(packed.classes)}", "none")
    view.left_out(packed.left_out)
    view.note(f"every block is as it was written ({len(packed.blocks):,})", "bold")


def finished(folder: Path, plan: Plan) -> Packed | None:
    """The packed set in the folder; None if it holds none.

    Raises:
        InputError: it was packed from other images or with other settings.
    """
    if not (folder / PACKED_FILE).is_file():
        return None
    packed = read_packed(folder)
    if packed.plan != plan:
        raise InputError(f"out={folder} holds another packed data set ({_told(packed.plan)}); choose another folder")
    return packed


def _told(plan: Plan) -> str:
    return f"{plan.images:,} images of {plan.name} at {plan.size}, {plan.format}"
