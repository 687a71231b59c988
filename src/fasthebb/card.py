"""The card of a model file: how to build the network, and how its images are prepared. Cards may be a stranger's."""

import json
import math
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, get_type_hints

from fasthebb.typed import check

LONGEST = 500  # characters of a name
LARGEST = 4096  # of an image's height, width and channels
FITS = ("crop", "pad", "stretch")  # the shorter side fits and the middle is cut out; the longer side fits; both do
# Left out of a file if they have their defaults, so that files stay as they were before these fields existed
YOUNGER = ("hidden", "closed_form", "fit", "background")


@dataclass(frozen=True)
class ModelCard:
    """What a user of the weights needs to know.

    Args:
        model, arguments: name and keyword arguments of the function that builds the network; see `build_network`.
        channels, size: of the images, (channels, size, size).
        fit, background: how files become images of that size: see FITS; behind transparent and beside padded images.
        classes: names of the classes, in the order of the scores.
        mean, std: for each channel, of pixels in [0, 1]; images are normalised with them.
        whitening: the network's first layer whitens the images; its matrix is one of the weights.
        layer: the network ends after this layer; None: it is whole.
        labels_train, labels_validation: number of labels that were used to train the weights.
        taught: the classifier was trained on these features.
        hidden: number of units in the classifier's hidden layer; 0: it has none.
        closed_form: what a classifier in closed form reads; None: the classifier is a layer.
    """

    model: str
    arguments: dict[str, Any]
    channels: int
    size: int
    classes: list[str]
    mean: list[float]
    std: list[float]
    whitening: bool = False
    layer: str | None = None
    labels_train: int = 0
    labels_validation: int = 0
    taught: bool = False
    hidden: int = 0
    closed_form: dict[str, Any] | None = None
    fit: str = "crop"
    background: str = "white"


def described_by(card: ModelCard) -> dict[str, Any]:
    """What a model file says of its network."""
    described = asdict(card)
    for field in fields(ModelCard):
        if field.name in YOUNGER and described[field.name] == field.default:
            described.pop(field.name)
    return described


def card_of(described: Any) -> ModelCard:
    """The card that a model file describes.

    Raises:
        ValueError: a key is missing, or unknown, or its value is of another type or out of range.
    """
    check("", described, dict[str, Any])
    hints = get_type_hints(ModelCard)
    for field in fields(ModelCard):
        if field.name in described:
            check(field.name, described[field.name], hints[field.name])
        elif field.default is MISSING:
            raise ValueError(f"it has no {field.name}")
    if unknown := described.keys() - hints.keys():
        raise ValueError(f"it has {min(unknown)}, which is unknown; a newer fasthebb may have written it")
    card = ModelCard(**described)
    for name, value, low, high in (
        ("channels", card.channels, 1, LARGEST), ("size", card.size, 1, LARGEST),
        ("labels_train", card.labels_train, 0, math.inf), ("labels_validation", card.labels_validation, 0, math.inf),
        ("hidden", card.hidden, 0, math.inf),
    ):  # fmt: skip
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}")
    if not len(card.mean) == len(card.std) == card.channels or min(card.std) <= 0:
        raise ValueError(f"mean and std must have {card.channels} numbers each, and those of std be above 0")
    if len(card.model) > LONGEST or len(card.layer or "") > LONGEST:
        raise ValueError(f"model or layer has more than {LONGEST} characters")
    if card.fit not in FITS:
        raise ValueError(f"fit is {card.fit}, not {', '.join(FITS)}")
    if len(set(card.classes)) < len(card.classes):
        raise ValueError("two of its classes have the same name")
    try:
        json.dumps(card.arguments, allow_nan=False)
    except ValueError:
        raise ValueError("arguments has a number that is not finite") from None
    _check_closed_form(card.closed_form)
    return card


def _check_closed_form(described: dict[str, Any] | None) -> None:
    """Raises:
    ValueError: it is not what `closed_form_network` takes.
    """
    if described is None:
        return
    kinds = {"layers": list[str] | None, "pool": int, "root": bool, "mirror": bool}
    if described.keys() != kinds.keys():
        raise ValueError(f"closed_form must have {', '.join(kinds)}")
    check("closed_form", described, kinds)
    if any(len(pattern) > LONGEST for pattern in described["layers"] or ()):
        raise ValueError(f"closed_form.layers has more than {LONGEST} characters in a pattern")
    if described["pool"] < 1 or described["layers"] == []:
        raise ValueError("closed_form.pool must be at least 1, and closed_form.layers not empty")
