"""Today's behaviour as data: the fingerprint of every stage that can be planned, and the numbers of small runs.

A fingerprint names a stage's directory, so one that changes takes finished runs from users. It is the same on every
machine. Weights are so to the last bit only where torch, its BLAS and the processor are the same ones (`machine`);
elsewhere the norms of tensors are near. See record.py and compare.py.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file

# Nothing else of the project is named here or in the other files of this folder
from fasthebb_cli.cli import run as fasthebb  # the words after `fasthebb` -> exit code
from fasthebb_cli.run.plan import plan  # configuration, data set -> stages with name, directory and fingerprint
from fasthebb_cli.settings.fingerprint import NUMBERS_VERSION, omitted
from fasthebb_cli.settings.stages import KINDS
from tests.conftest import loaded  # words after `fasthebb train` -> configuration
from tests.many import together  # runs a function in processes that know of each other
from tests.test_experiments import CELLS as EXPERIMENTS
from tests.test_experiments import CONF, images_for

FOLDER = Path(__file__).parent
FINGERPRINTS, WEIGHTS = FOLDER / "fingerprints.json", FOLDER / "weights.json"
DEFAULTS = FOLDER / "defaults.json"
# what results say of this run alone
TIMES = ("seconds", "images_per_second", "finished", "device", "versions", "seal")

RULES = sorted(
    str(path.relative_to(CONF / "rule").with_suffix(""))
    for path in (CONF / "rule").rglob("*.yaml")
    if path.stem != "own"  # has no name of itself
)
FINETUNES = sorted(path.stem for path in (CONF / "finetune").glob("*.yaml"))

# digits, two epochs of four steps each through a 32nd of conv6
SMALL = (
    "gpu=cpu", "dataset=digits", "dataset.train_samples=200", "dataset.validation_samples=50",
    "dataset.test_samples=100", "label_fraction=0.5", "model.width=0.03", "pretrain.epochs=2",
    "finetune=backprop", "finetune.epochs=2",
)  # fmt: skip
EVERY_HEAD = (
    "stages=[pretrain,probe]", "probe.methods=[linear,hebbian,knn,svm,retrieval]", "probe.epochs=1",
    "probe.components=20", "probe.queries=50",
)  # fmt: skip
ONWARD = ("stages=[pretrain,finetune,onward,evaluate]", "+finetune@extra.onward=backprop", "extra.onward.epochs=1")
NO_WHITENING = "rule.whitening=null"  # whose fit takes five seconds
RUNS: dict[str, tuple[str, ...]] = {
    **{f"rule={rule}": (f"rule={rule}", NO_WHITENING) for rule in RULES},
    "whitening": ("rule=swta",),
    **{f"finetune={name}": (f"finetune={name}",) for name in FINETUNES if name != "backprop"},
    "finetune=gentle": ("finetune=gentle", "finetune.classifier_epochs=1"),
    "by_rule": ("finetune.by_rule=[conv1]",),
    "extra by_rule": (*ONWARD, "extra.onward.by_rule=[conv2]"),
    "layer": ("finetune.layer=conv2",),
    "hidden": ("finetune.hidden=16",),
    "best": ("finetune.select=best", "evaluate=validation"),
    "schedules": ("pretrain.schedule=constant", "finetune.schedule=one_cycle", "finetune.optimizer=AdamW"),
    "features": ("finetune.features_lr=0.5", "finetune.layer_lr={conv1*: 0}", "label_subset=random", "seed=1"),
    "augment": ("pretrain.augment=light", "finetune.augment=hard"),
    "teacher": ("rule=hebb", "pretrain.teacher=true", "pretrain.teacher_units={conv2*: 2}"),
    "layer_by_layer": ("rule=swta", "pretrain.layer_by_layer=true", NO_WHITENING),
    "include": ("pretrain.include=[conv*]", "pretrain.exclude=[conv2*]", "pretrain.optimizer=Adam"),
    "micro_batch": ("gpu.micro_batch=16",),
    "micro_batch swta": ("rule=swta", "gpu.micro_batch=16", "stages=[pretrain]", NO_WHITENING),
    "relative": ("model.norm=relative", "pretrain=paper"),
    "bf16": ("gpu.precision=bf16",),
    "probe": EVERY_HEAD,
    "probe none": ("rule=none", "stages=[finetune,probe]", "probe.split=validation", "probe.epochs=1"),
    "softhebb": ("model=softhebb", "rule=softhebb", "finetune=frozen"),
    "triangle": ("model=triangle", "rule=kmeans", "finetune=frozen"),
}  # fmt: skip
TWO = (
    "rule=hpca", "rule=swta", "rule=hpca_adaptive", "rule=vae", "rule=none", "finetune=hebbian", "by_rule", "probe",
)  # fmt: skip
PLANNED = {  # beside every rule x finetune choice
    **{f"pretrain=paper rule={rule}": ("pretrain=paper", f"rule={rule}") for rule in ("hpca", "swta", "vae")},
    "probe": ("stages=[pretrain,finetune,probe,evaluate]", "label_fraction=0.05"),
    "evaluate=validation": (
        "evaluate=validation",
        "finetune=backprop",
        "finetune.select=best",
        "seed=3",
        "label_subset=random",
    ),
    "extra": (
        "finetune=backprop",
        *ONWARD,
        "extra.onward.by_rule=[conv2]",
        "finetune.layer=conv3",
        "finetune.hidden=64",
    ),
    "patterns": (
        "finetune=backprop",
        "++pretrain.layer_lr={conv*: 0.5, conv1*: 0.1}",
        "++finetune.layer_lr={conv1*: 0}",
        "gpu.precision=bf16",
    ),
    "teacher": ("pretrain.teacher=true", "++pretrain.teacher_units={conv2*: 80}", "label_fraction=0.1"),
}


def fingerprints() -> dict[str, str]:
    """Of every stage, by cell and stage: the directory's name with the whole fingerprint at its end."""
    found: dict[str, str] = {}
    for _, cell in EXPERIMENTS:
        found |= _planned(" ".join(cell), loaded(*cell, "label_fraction=1"))
    finetunes = {name: loaded(f"finetune={name}").settings["finetune"] for name in FINETUNES}
    for rule in RULES:
        config = loaded(f"rule={rule}")
        for name, finetune in finetunes.items():
            found |= _planned(
                f"rule={rule} finetune={name}", replace(config, settings=config.settings | {"finetune": finetune})
            )
    for name, words in PLANNED.items():
        found |= _planned(name, loaded(*words))
    return found


def _planned(name: str, config: Any) -> dict[str, str]:
    return {
        f"{name}: {stage.name}": stage.directory.name.rpartition("-")[0] + f"-{stage.fingerprint}"
        for stage in plan(config, images_for(config))
    }


def defaults() -> dict[str, Any]:
    """What fingerprints leave out, since it is the default of its key, and since which version that is so."""
    found: dict[str, Any] = {"version": NUMBERS_VERSION}
    for kind in KINDS:
        found |= omitted(kind)
    return found


def unannounced(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Defaults that are no longer what they were, or gone, although NUMBERS_VERSION has not risen. New ones may be."""
    if found["version"] > recorded["version"]:
        return []
    remedy = "earlier runs would pass for new ones; raise NUMBERS_VERSION in settings/fingerprint.py"
    return [
        f"the default of {key} was {value!r} and is {found.get(key, 'gone')!r}: {remedy}"
        for key, value in recorded.items()
        if key not in found or found[key] != value
    ]


def alone(name: str, out: Path) -> dict[str, Any]:
    """Runs one of RUNS in this process and returns what its stages gave, by `name: stage`."""
    torch.set_num_threads(1)
    GlobalHydra.instance().clear()
    given = {word.split("=")[0] for word in RUNS[name]}
    if "finetune=closed_form" in RUNS[name]:
        given.add("finetune.epochs")
    words = [word for word in SMALL if word.split("=")[0] not in given]
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = fasthebb(["train", *words, f"out={out}", *RUNS[name]])
    GlobalHydra.instance().clear()
    assert code == 0, f"{name}: {said.getvalue()}"
    return {f"{name}: {stage}": numbers for stage, numbers in _stages(out)}


def by_two() -> dict[str, Any]:
    """Runs TWO in two processes that share the work."""
    with tempfile.TemporaryDirectory() as folder:
        together("tests.golden.freeze:_one_of_two", 2, Path(folder))
        found: dict[str, Any] = {}
        for number, name in enumerate(TWO):
            found |= {f"{name}, by two: {stage}": numbers for stage, numbers in _stages(Path(folder) / f"{number}")}
        return found


def _one_of_two(folder: Path) -> None:
    for number, name in enumerate(TWO):
        alone(name, folder / f"{number}")


def weights() -> dict[str, Any]:
    """Of every run, by one process and by two: what `alone` returns."""
    found: dict[str, Any] = {}
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            found |= alone(name, Path(folder))
    return found | by_two()


def _stages(out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of each stage below `out`: top1, top5, loss, norms of tensors, and digests of results, epochs and weights."""
    for path in sorted(out.glob("*/results.json")):
        results = json.loads(path.read_text())
        stage = results["stage"]
        epochs = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
        numbers = {key: results[key] for key in ("top1", "top5", "loss")}
        numbers["results"] = _digest(_timeless(results))
        numbers["epochs"] = _digest([_timeless(epoch) for epoch in epochs])
        model = path.parent / "model.safetensors"
        if model.exists():
            tensors = load_file(model)
            numbers["weights"] = _digest_of_tensors(tensors)
            numbers["norms"] = {key: float(f"{tensor.double().norm():.6g}") for key, tensor in sorted(tensors.items())}
        yield stage, numbers


def _timeless(numbers: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in numbers.items() if key not in TIMES}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest_of_tensors(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def machine() -> dict[str, str]:
    """What the last bits of weights and results depend on."""
    libraries = " ".join(re.findall(r"BLAS_INFO=\w+|MKL-DNN v[\w.]+|Library Version [\w.-]+", torch.__config__.show()))
    processor = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = sorted(set(re.findall(r"^(?:model name|flags)\s*: (.*)$", processor, re.MULTILINE)))
    return {
        "torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability(), "libraries": libraries,
        "processor": _digest(lines), "numpy": version("numpy"), "scikit-learn": version("scikit-learn"),
    }  # fmt: skip


def differing(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of what is not exactly the same, or is in one of them alone; with the keys that differ."""
    names = []
    for name in sorted(recorded.keys() | found.keys()):
        there, here = recorded.get(name), found.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            keys = [key for key in (there | here) if there.get(key) != here.get(key)]
            names += [f"{name} ({', '.join(keys)})"] if keys else []
        elif there != here:
            names.append(name if there and here else f"{name} ({'new' if here else 'gone'})")
    return names


def write(path: Path, recorded: dict[str, Any]) -> None:
    """One line an entry, so that a difference can be read."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in recorded.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read(path: Path) -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads(path.read_text())
    return recorded
