"""A trained network as one safetensors file, which also says how to build the network and prepare its images."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fasthebb.card import ModelCard, card_of, described_by
from fasthebb.nets.build import build_network
from fasthebb.own import is_own
from fasthebb.readout.network import ClosedForm
from fasthebb.stage_files import (
    FINGERPRINT_FILE,
    MODEL_FILE,
    RESULTS_FILE,
    check_seal,
    digest_of_file,
    parse_json,
    read_json,
)

MOST_TENSORS = 10_000  # of a network that a card names: the largest have about 1,000


def model_bytes(network: nn.Module, card: ModelCard) -> bytes:
    """The content of a model file; the same weights and card give the same bytes."""
    # clones, as a module that occurs twice shares its memory, which the format refuses
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    # one key, as the order of several keys in the file would vary
    return save(tensors, metadata={"fasthebb": json.dumps(described_by(card))})


def read_model(path: Path) -> tuple[dict[str, Tensor], ModelCard]:
    """The weights and the card of a model file, or of the stage directory that contains one.

    Raises:
        ValueError: there is no file, it is damaged, or fasthebb did not write it.
    """
    path = _model_file(path)
    card = read_card(path)
    _check_origin(path)
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    if strange := [name for name, value in weights.items() if value.is_complex()]:
        raise ValueError(f"{path}: {strange[0]} has complex numbers, which no network here has")
    if strange := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise ValueError(f"{path}: {strange[0]} is not finite")
    return weights, card


def read_card(path: Path) -> ModelCard:
    """The card alone; arguments and errors as `read_model`."""
    path = _model_file(path)
    if path.exists() and not path.is_file():  # opening a named pipe would wait for ever
        raise ValueError(f"{path} is no regular file; give a {MODEL_FILE} or the stage directory that holds one")
    try:
        with safe_open(path, framework="pt") as file:
            described = (file.metadata() or {}).get("fasthebb")
    except FileNotFoundError as error:
        raise ValueError(f"no model at {path}; give a {MODEL_FILE} or the stage directory that holds one") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({str(error).splitlines()[0]})") from error
    if described is None:
        raise ValueError(f"{path} was not written by fasthebb: it has no description of its network")
    try:
        return card_of(parse_json(described))
    except ValueError as error:
        raise ValueError(f"{path}: the description of its network is damaged: {error}") from error


def _check_origin(path: Path) -> None:
    """Raises:
    ValueError: the file lies in a stage's directory, and it is not the one that the stage wrote.
    """
    results = path.parent / RESULTS_FILE
    if path.name != MODEL_FILE or not results.exists():
        return
    written = read_json(results)
    try:
        check_seal(written)
    except ValueError as error:
        raise ValueError(f"{results}: {error}; delete its directory to start that stage over") from error
    if "weights" in written and written["weights"] != digest_of_file(path):
        raise ValueError(f"{path} is not what its stage wrote (see {results}); delete its directory to start it over")


def _model_file(path: Path) -> Path:
    """The model file of a stage directory; a path that is a file stays as it is.

    A stage that measures has no model file. Then it is that of the stage before, if both directories are in one folder.
    """
    if not path.is_dir() or (path / MODEL_FILE).exists() or not (path / FINGERPRINT_FILE).exists():
        return path / MODEL_FILE if path.is_dir() else path
    content = read_json(path / FINGERPRINT_FILE)
    measures = f"{content.get('kind')}.split" in content  # such a stage has a split, and trains nothing
    previous = content.get("previous") if measures else None
    for results in path.resolve().parent.glob(f"*/{RESULTS_FILE}") if previous is not None else ():
        try:
            found = read_json(results).get("fingerprint")
        except ValueError:  # another stage's, which is damaged
            continue
        if found == previous:
            return results.parent / MODEL_FILE
    return path / MODEL_FILE


def load_model(path: str | Path, device: str = "cpu", trust: Collection[str] = ()) -> nn.Module:
    """A trained network in evaluation mode: images (B, channels, size, size) -> scores (B, classes).

    Args:
        path: a `model.safetensors`, or the stage directory that contains one.
        device: where the network is to be, as "cuda".
        trust: names of functions, my_package.module:function, that may build it. Without, only networks of this package
            and of torchvision are built: whoever made the file could name any code of this machine.

    Raises:
        ValueError: as `load_model_and_card`.
    """
    return load_model_and_card(path, device, trust)[0]


def load_model_and_card(
    path: str | Path, device: str = "cpu", trust: Collection[str] = ()
) -> tuple[nn.Module, ModelCard]:
    """The same network, and its card: image size, classes and normalisation.

    Raises:
        ValueError: there is no model, it is damaged, its network is somebody's own and not trusted, or the function
            that builds it is missing or has changed, or there is no such device.
    """
    weights, card = read_model(Path(path))
    own = is_own(card.model)
    if own and card.model not in trust:
        raise ValueError(
            f"{path}: code of its own builds its network, {card.model}; if you know this code, say trust={card.model}"
        )
    try:
        if not own:
            # the card may claim any size: nothing is allocated before it fits the file
            with torch.device("meta"), _at_most_tensors(MOST_TENSORS):
                _check_weights(_network_of(card), weights)
        network = _network_of(card)
        network.load_state_dict(weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except RuntimeError as error:
        raise ValueError(f"{path}: its weights do not fit the network {card.model}; has its code changed?") from error
    except Exception as error:
        raise ValueError(
            f"{path}: its network {card.model} can't be built ({type(error).__name__}: {error})"
        ) from error
    network.eval()
    try:
        _try(network, card)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        return network.to(torch.device(device)), card
    except (RuntimeError, AssertionError, TypeError) as error:  # torch's, of names and of what it was built without
        raise ValueError(f"device={device!r}: {str(error).splitlines()[0]}") from error


@torch.no_grad()
def _try(network: nn.Module, card: ModelCard) -> None:
    """Passes blank images through a network. Somebody's own may give what it likes.

    Raises:
        ValueError: it fails, or gives other than a score for each class.
    """
    images, classes = torch.zeros(2, card.channels, card.size, card.size), max(len(card.classes), 1)
    if isinstance(network, ClosedForm):
        network.check(images[:1], classes)
    if is_own(card.model):
        return
    try:
        scores = network(images)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"its network {card.model} fails on an image of {card.size} x {card.size} ({reason})"
        ) from error
    if tuple(scores.shape) != (2, classes):
        raise ValueError(f"its network {card.model} gives scores of shape {tuple(scores.shape)}, not {(2, classes)}")


@contextmanager
def _at_most_tensors(most: int) -> Iterator[None]:
    """Within, networks may have so many parameters, and building one with more fails at once.

    Raises:
        ValueError: there are more.
    """
    found = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal found
        found += 1
        if found > most:
            raise ValueError(f"its network would have more than {most:,} tensors")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _network_of(card: ModelCard) -> nn.Module:
    return build_network(
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


def _check_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raises:
    RuntimeError: the network's tensors are not those of the file.
    """
    if isinstance(network, ClosedForm):
        network.make_room(weights)
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    if wanted != {name: value.shape for name, value in weights.items()}:
        raise RuntimeError


def adopt_weights(
    network: nn.Module, weights: dict[str, Tensor], origin: Path, *, classifier: bool = True
) -> list[str]:
    """Loads weights that may come from another data set. If the classifier does not fit, it is not loaded.

    Args:
        origin: the file of the weights, for error messages.
        classifier: false: the classifier is not loaded, as it is of other classes.

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
        is_classifier = name.startswith("classifier.")
        fits = name in weights and weights[name].shape == value.shape
        if fits and (classifier or not is_classifier):
            continue
        if is_classifier:
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
