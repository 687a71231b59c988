"""A trained network as one safetensors file, which also says how to build the network and prepare its images."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fasthebb.nets.build import build_network
from fasthebb.readout.network import ClosedForm
from fasthebb.stage_files import FINGERPRINT_FILE, MODEL_FILE, RESULTS_FILE, read_json


@dataclass(frozen=True)
class ModelCard:
    """What a user of the weights needs to know.

    Args:
        model, arguments: name and keyword arguments of the function that builds the network; see `build_network`.
        channels, size: of the images, (channels, size, size).
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


def model_bytes(network: nn.Module, card: ModelCard) -> bytes:
    """The content of a model file; the same weights and card give the same bytes."""
    # clones, as a module that occurs twice shares its memory, which the format refuses
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    described = asdict(card)
    for name in ("hidden", "closed_form"):
        if not described[name]:
            described.pop(name)  # so that files without it stay as they were before this field existed
    # one key, as the order of several keys in the file would vary
    return save(tensors, metadata={"fasthebb": json.dumps(described)})


def read_model(path: Path) -> tuple[dict[str, Tensor], ModelCard]:
    """The weights and the card of a model file, or of the stage directory that contains one.

    Raises:
        ValueError: there is no file, it is damaged, or fasthebb did not write it.
    """
    path = _model_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        card = ModelCard(**json.loads(metadata["fasthebb"]))
        _check_closed_form(card.closed_form)
    except FileNotFoundError as error:
        raise ValueError(f"no model at {path}; give a {MODEL_FILE} or the stage directory that holds one") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({str(error).splitlines()[0]})") from error
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} was not written by fasthebb: it has no description of its network") from error
    return weights, card


def _check_closed_form(described: Any) -> None:
    """Raises:
    ValueError: it is not what `closed_form_network` takes.
    """
    if described is None:
        return
    kinds = {"pool": int, "root": bool, "mirror": bool}
    if not isinstance(described, dict) or described.keys() != {"layers", *kinds}:
        raise ValueError("a closed form has layers, pool, root and mirror")
    layers = described["layers"]
    if layers is not None and not (
        isinstance(layers, list) and layers and all(isinstance(name, str) for name in layers)
    ):
        raise ValueError("layers of a closed form are names")
    if any(type(described[name]) is not kind for name, kind in kinds.items()) or described["pool"] < 1:
        raise ValueError("pool, root and mirror of a closed form have other values")


def _model_file(path: Path) -> Path:
    """The model file of a stage directory; a path that is a file stays as it is.

    A stage that measures has no model file. Then it is that of the stage before, if both directories are in one folder.
    """
    if not path.is_dir() or (path / MODEL_FILE).exists() or not (path / FINGERPRINT_FILE).exists():
        return path / MODEL_FILE if path.is_dir() else path
    content = read_json(path / FINGERPRINT_FILE)
    measures = f"{content.get('kind')}.split" in content  # such a stage has a split, and trains nothing
    previous = content.get("previous") if measures else None
    for results in path.resolve().parent.glob(f"*/{RESULTS_FILE}"):
        if previous is not None and read_json(results).get("fingerprint") == previous:
            return results.parent / MODEL_FILE
    return path / MODEL_FILE


def load_model(path: str | Path, device: str = "cpu") -> nn.Module:
    """A trained network in evaluation mode: images (B, channels, size, size) -> scores (B, classes).

    Args:
        path: a `model.safetensors`, or the stage directory that contains one.
        device: where the network is to be, as "cuda".

    Raises:
        ValueError: as `load_model_and_card`.
    """
    return load_model_and_card(path, device)[0]


def load_model_and_card(path: str | Path, device: str = "cpu") -> tuple[nn.Module, ModelCard]:
    """The same network, and its card: image size, classes and normalisation.

    Raises:
        ValueError: there is no model, it is damaged, or the function that builds its network is missing or has changed.
    """
    weights, card = read_model(Path(path))
    network = build_network(
        card.model,
        card.arguments,
        channels=card.channels,
        size=card.size,
        classes=max(len(card.classes), 1),
        whitening=card.whitening,
        layer=card.layer,
        hidden=card.hidden,
        closed_form=card.closed_form,
    )
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: its weights do not fit the network {card.model}; has its code changed?") from error
    if isinstance(network, ClosedForm):
        try:
            network.check(torch.zeros(1, card.channels, card.size, card.size), max(len(card.classes), 1))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return network.to(torch.device(device)).eval(), card


def adopt_weights(network: nn.Module, weights: dict[str, Tensor], origin: Path) -> list[str]:
    """Loads weights that may come from another data set. If the classifier does not fit, it is not loaded.

    Args:
        origin: the file of the weights, for error messages.

    Returns:
        Names of the network's tensors that were not loaded.

    Raises:
        ValueError: another tensor is missing, unknown or of another shape.
    """
    if isinstance(network, ClosedForm):
        network.make_room(weights)
    own = network.state_dict()
    left = []
    for name, value in own.items():
        fits = name in weights and weights[name].shape == value.shape
        if fits:
            continue
        if name.startswith("classifier."):
            left.append(name)
            continue
        found = f"has shape {list(weights[name].shape)}" if name in weights else "is missing"
        wanted = list(value.shape)
        raise ValueError(f"weights of {origin}: {name} {found}, the network's is {wanted}; see {_setting(name)}")
    unknown = [name for name in weights if name not in own]
    if unknown:
        raise ValueError(f"weights of {origin}: the network has no {unknown[0]}; see {_setting(unknown[0])}")
    network.load_state_dict({name: weights[name] for name in own if name not in left}, strict=False)
    return left


def _setting(tensor: str) -> str:
    """The setting of the runner that decides whether the network has the tensor."""
    return "rule.whitening" if tensor.startswith("whitening.") else "model"
