"""The command that makes a method's runs: its choices, then every key that these choices set to another value.

The keys come from config.yaml, the composed configuration in each stage's directory. Paths and devices are left out,
since they belong to the machine.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fasthebb.stage_files import read_bytes
from fasthebb_cli.console.formats import shell_words
from fasthebb_cli.report.grid import Method
from fasthebb_cli.run.directory import CONFIG_FILE
from fasthebb_cli.settings.config import SUBSETS, is_list
from fasthebb_cli.settings.stages import STAGE_GROUPS

CHOICES = ("dataset", "model", "rule")
DEEPEST = 50  # mappings and lists in each other; what a run writes has five
LEFT_OUT = ("verb", "out", "force", "dry_run", "hydra", "label_fraction", "labels_per_class", "seed", "init_from",
            "dataset.root", "dataset.labels", "dataset.unlabelled", "dataset.download", "dataset.in_memory",
            "gpu.device", "gpu.channels_last", "gpu.graph", "gpu.compile", "gpu.deterministic", "gpu.threads",
            "gpu.workers", "gpu.micro_batch")  # fmt: skip
LARGEST_YAML = 2**17  # bytes; ours have two thousand, and a megabyte takes seconds to read


def command_of(method: Method, conf: Path) -> str:
    """`fasthebb train ...` for all of a method's fractions and seeds; empty if the configuration can't be read.

    Args:
        conf: the directory with the configuration groups.
    """
    runs = method.all_runs()
    try:
        config = _read_yaml(runs[0].chain[-1].path / CONFIG_FILE)
        choices = [f"{group}={config[group]['name']}" for group in CHOICES]
        usual = _composed(conf, choices)
        kinds = {group: config[group]["kind"] for group in STAGE_GROUPS if group in config}
        if others := [group for group, kind in kinds.items() if usual[f"{group}.kind"] != kind]:
            choices += [f"{group}={_choice(conf / group, kinds[group])}" for group in others]
            usual = _composed(conf, choices)
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, HydraException, OmegaConfBaseException):
        return ""
    overrides = [
        word
        for key, value in _keys(config).items()
        if key not in LEFT_OUT and (key not in usual or usual[key] != value)
        for word in _overrides(key, value, usual)
    ]
    if config.get("init_from"):
        overrides.append(f"init_from=DIRECTORY/{_name(Path(config['init_from']))}")
    seeds = ",".join(map(str, sorted({run.seed for run in runs})))
    cell = [*_budgets(method, config), f"seed={seeds}"]
    sweep = ["-m"] if any("," in word for word in cell) else []
    words = [config.get("verb", "train"), *sweep, *choices, *overrides, *cell]
    return shell_words(["fasthebb", *words])


def _budgets(method: Method, config: Mapping[str, Any]) -> list[str]:
    """How many labels the runs have; none: a list that is among the settings names them."""
    if is_list(str(config.get("label_subset", SUBSETS[0]))):
        return []
    found = (item.content.get("labels_per_class") for run in method.all_runs() for item in run.chain)
    if counts := {count for count in found if isinstance(count, int)}:
        return [f"labels_per_class={','.join(map(str, sorted(counts)))}"]
    return [f"label_fraction={','.join(f'{fraction:g}' for fraction in sorted(method.runs))}"]


def _read_yaml(path: Path) -> Any:
    """Raises:
    OSError, ValueError, yaml.YAMLError: it can't be read, is too large or nested too deeply, or refers to itself. A
        few lines of such references can stand for more than any memory holds; what a run writes has none.
    """
    text, depth = read_bytes(path, LARGEST_YAML).decode(), 0
    for event in yaml.parse(text):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it refers to itself")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError("it is nested too deeply")
    return yaml.safe_load(text)


def _choice(group: Path, kind: str) -> str:
    """The first choice of a group that sets up such a stage; other keys are overridden below it."""
    files = sorted(group.glob("*.yaml"))
    return next((path.stem for path in files if f"kind: {kind}" in path.read_text().splitlines()), kind)


def _name(weights: Path) -> str:
    """The name of a stage's directory, or of the directory and the file of weights in it."""
    return str(Path(weights.parent.name) / weights.name) if weights.suffix else weights.name


def _overrides(key: str, value: Any, usual: Mapping[str, Any]) -> list[str]:
    """The words that set a key. An override of a mapping only adds entries; to drop some, it is deleted first."""
    if key not in usual:
        return [f"+{key}={_written(value)}"]
    if _lacks(value, usual[key]):
        return [f"~{key}", f"+{key}={_written(value)}"]
    return [f"{key}={_written(value)}"]


def _lacks(value: Any, usual: Any) -> bool:
    """Whether the second mapping has a key, at any depth, that the first one lacks."""
    if not (isinstance(value, dict) and isinstance(usual, dict)):
        return False
    return any(key not in value or _lacks(value[key], usual[key]) for key in usual)


def _composed(conf: Path, choices: list[str]) -> dict[str, Any]:
    """The configuration that Hydra composes from the choices alone."""
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", overrides=choices), resolve=True)
    assert isinstance(config, dict)
    return _keys(config)


def _keys(config: Mapping[Any, Any]) -> dict[str, Any]:
    """Flat keys of the first two levels. Deeper mappings stay values, since their names may be patterns."""
    keys: dict[str, Any] = {}
    for group, values in config.items():
        if isinstance(values, dict):
            keys |= {f"{group}.{key}": value for key, value in values.items()}
        else:
            keys[str(group)] = values
    return keys


def _written(value: Any) -> str:
    """A value as Hydra's command line reads it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
