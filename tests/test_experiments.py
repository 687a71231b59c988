"""Every experiment file says what it is and what to expect, pins its numbers, and its commands can be run."""

import re
import shlex
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fasthebb_cli.data.dataset import Dataset
from fasthebb_cli.data.source import InMemory
from fasthebb_cli.errors import InputError
from fasthebb_cli.run.start import new_network
from fasthebb_cli.run.validate import planned
from fasthebb_cli.settings.conf import conf_directory
from fasthebb_cli.settings.config import Config
from fasthebb_cli.settings.load import load
from fasthebb_cli.stages.rule import NO_RULES, attached
from tests.conftest import loaded

CONF = conf_directory()
FOLDER = CONF / "experiment"
NAMES = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))
PAPER = [name for name in NAMES if name.startswith("fasthebb/")]
CLASSES = {"cifar10": 10, "cifar100": 100, "tiny_imagenet": 200, "imagenet": 1000, "mnist5k": 10, "image_folder": 10}


def head_of(name: str) -> str:
    """The comments that open the file."""
    lines = (FOLDER / f"{name}.yaml").read_text().split("defaults:")[0].splitlines()
    return "\n".join(line.removeprefix("# ") for line in lines)


def commands_of(name: str) -> list[list[str]]:
    """The words after `fasthebb train` of each command in the head."""
    found = re.findall(r"fasthebb train .*", re.sub(r"\\\n *", "", head_of(name)))
    return [shlex.split(line)[2:] for line in found]


def cells_of(words: list[str]) -> list[list[str]]:
    """A command's cells, but for fractions and seeds: those of its rules and models."""
    kept = [word for word in words if word != "-m" and not word.startswith(("label_fraction=", "seed="))]
    keys = [word.partition("=")[0] for word in kept]
    values = [word.partition("=")[2].split(",") for word in kept]
    return [[f"{key}={value}" for key, value in zip(keys, cell, strict=True)] for cell in product(*values)]


def rules_of(words: list[str]) -> list[str]:
    return [rule for word in words if word.startswith("rule=") for rule in word.removeprefix("rule=").split(",")]


def in_words(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "-".join(word for word in value if not word.startswith("experiment="))


def experiment_of(cell: list[str]) -> str:
    (name,) = (word.removeprefix("experiment=") for word in cell if word.startswith("experiment="))
    return name


# a command may compare several experiments; each cell belongs to its own
CELLS = [
    (name, cell)
    for name in NAMES
    for words in commands_of(name)
    for cell in cells_of(words)
    if experiment_of(cell) == name
]
LEARNING = [(name, cell) for name, cell in CELLS if rules_of(cell) != ["none"]]  # and the others have no more numbers


def images_for(config: Config) -> Dataset:
    """As many classes and as large images as the real ones, one of each class to train on and one to test on."""
    classes = CLASSES[config.dataset.name]
    pixels = torch.zeros(1, 3, config.dataset.size, config.dataset.size, dtype=torch.uint8)
    numbers = torch.arange(classes)
    return Dataset(
        name=config.dataset.name, classes=tuple(map(str, range(classes))),
        source=InMemory(pixels.expand(2 * classes, -1, -1, -1)), labels=numbers.repeat(2), train=numbers,
        validation=numbers[:0], test=numbers + classes, unlabelled=numbers[:0], digest="00",
    )  # fmt: skip


def settings_of(config: Config, stage: str) -> Any:
    return config.settings[stage]


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_says_what_to_run_and_what_to_expect(name: str) -> None:
    starts = [line.split(" ")[0] for line in head_of(name).splitlines() if line[:1].islower()]
    assert starts == ["command", "hardware", "time", "expected", "source"]
    assert commands_of(name)
    for words in commands_of(name):
        (experiments,) = (word.removeprefix("experiment=") for word in words if word.startswith("experiment="))
        assert name in experiments.split(",")


@pytest.mark.parametrize(("name", "cell"), CELLS, ids=in_words)
def test_the_commands_of_every_experiment_can_be_run(name: str, cell: list[str]) -> None:
    """As far as can be told without the images, and without computing anything."""
    config = loaded(*cell, "label_fraction=1")
    dataset = images_for(config)
    planned(config, dataset)
    if config.rule.name not in NO_RULES:
        with torch.device("meta"):
            attached(config.rule, new_network(config, dataset), "pretrain", lr=settings_of(config, "pretrain").lr)


def test_a_network_that_can_not_be_mirrored_is_found_before_anything_runs() -> None:
    config = loaded("experiment=fasthebb/vgg_imagenet", "rule=vae", "label_fraction=1")
    dataset = images_for(config)
    with pytest.raises(InputError, match="rule=vae: a VGG has no mirror image"):
        planned(config, dataset)


def numbers(node: Any, prefix: str = "") -> dict[str, Any]:
    """Numbers of a nested mapping by their whole key; interpolations are none."""
    if isinstance(node, dict):
        return {key: value for part in node for key, value in numbers(node[part], f"{prefix}.{part}").items()}
    return {prefix[1:]: node} if isinstance(node, int | float) and not isinstance(node, bool) else {}


def own_numbers(path: Path) -> set[str]:
    return set(numbers(yaml.safe_load(path.read_text())))


@pytest.mark.parametrize(("name", "cell"), LEARNING, ids=in_words)
def test_every_experiment_pins_its_numbers(name: str, cell: list[str]) -> None:
    """In its file, its command, or the file of a rule that is there for the papers; so defaults may change."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", [*cell, "verb=train"])
    stages, found = load(composed).stages, OmegaConf.to_container(composed, resolve=False)
    assert isinstance(found, dict)
    if found["rule"]["name"] == "none":
        stages.remove("pretrain")
    learns = () if found["rule"]["name"] in ("random", "none") else ("rule",)
    parts = ("label_fraction", "dataset", *learns, "model", *stages)
    wanted = set(numbers({part: found[part] for part in parts}))
    wanted -= {f"{stage}.batch_size" for stage in ("probe", "evaluate")}  # don't change what is measured
    if "probe" in stages and found["probe"]["methods"] == ["linear"]:
        wanted -= {f"probe.{key}" for key in ("neighbours", "components", "queries")}  # of other methods
    typed = {word.partition("=")[0] for words in commands_of(name) for word in words}
    pinned = own_numbers(FOLDER / f"{name}.yaml") | typed
    for rule in rules_of(cell):
        if rule.startswith("paper/") or rule == "vae":
            files = {rule, rule.removesuffix("_imagenet")}  # which stands on the other one
            pinned |= {f"rule.{key}" for file in files for key in own_numbers(CONF / "rule" / f"{file}.yaml")}
    assert wanted <= pinned


@pytest.mark.parametrize("name", PAPER)
def test_one_command_makes_a_table_of_the_papers(name: str) -> None:
    words = commands_of(name)[0]
    assert words[0] == "-m"
    assert "label_fraction=0.01,0.02,0.03,0.04,0.05,0.1,0.25,1" in words
    assert "seed=range(0,5)" in words
    assert {cell.removesuffix("_imagenet") for cell in rules_of(words)} >= {"paper/hpca", "paper/swta", "none"}


@pytest.mark.parametrize(
    ("name", "samples", "size", "batch", "penalty"),
    [
        ("cifar10", 40_000, 32, 64, 0.05),
        ("cifar100", 40_000, 32, 64, 0.01),
        ("tiny_imagenet", 90_000, 32, 64, 0.005),
        ("imagenet", 1_200_000, 210, 32, 0.001),
        ("vgg_imagenet", 1_200_000, 224, 32, 0.001),
    ],
)
def test_paper_experiments_pin_the_protocol(name: str, samples: int, size: int, batch: int, penalty: float) -> None:
    config = loaded(f"experiment=fasthebb/{name}")
    assert (config.dataset.train_samples, config.dataset.size) == (samples, size)
    pretrain, tuned = settings_of(config, "pretrain"), settings_of(config, "finetune")
    assert pretrain.batch_size == tuned.batch_size == batch
    assert (pretrain.epochs, pretrain.schedule, pretrain.layer_lr) == (20, "constant", {})
    assert pretrain.lr == (1e-4 if "imagenet" in name and "tiny" not in name else 1e-3)
    assert (config.rule.options, config.rule.layer_lr) == ({"denominator": "patches"}, {})
    assert (tuned.epochs, tuned.lr, tuned.schedule, tuned.weight_decay) == (20, 1e-3, "halving", penalty)
    assert (tuned.momentum, tuned.augment, config.label_subset) == (0.9, "none", "random")
    if name != "vgg_imagenet":
        assert (config.model.norm, config.model.dropout) == ("relative", 0.5)
    swta = loaded(f"experiment=fasthebb/{name}", "rule=paper/swta")
    assert (swta.rule.whitening, swta.rule.options, settings_of(swta, "pretrain").lr) == (
        0.01,
        {"temperature": 0.02},
        1e-3,
    )
