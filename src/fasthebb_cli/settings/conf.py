"""Where the configuration files are, which choices a group has, and the defaults of its keys.

YAML is the only home of a default; the dataclasses of this package have none.
"""

from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fasthebb_cli.settings.closed_form import ComponentsConfig

DEFAULTS_FILES = {"dataset": "base/dataset", "rule": "base/rule", "model": "base/model", "gpu": "gpu/auto",
                  "finetune": "finetune/backprop", "closed_form": "finetune/closed_form",
                  "components": "finetune/closed_form"}  # fmt: skip

BY_LAYER = ("layer_lr", "layer_options", "teacher_units")  # mappings from patterns of layers
PARTS = {"components": ComponentsConfig}  # kinds whose keys are some of those of their file


def conf_directory() -> Path:
    """The configuration groups: inside the installed package, or beside the sources in a checkout."""
    installed = Path(__file__).parents[1] / "conf"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "conf"


def group_choices(conf: Path, group: str) -> dict[str, str]:
    """The choices of a group with the comment that opens each one's file."""
    choices = {}
    for path in sorted((conf / group).rglob("*.yaml")):
        comments = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
        first = comments[0]
        choices[str(path.relative_to(conf / group).with_suffix(""))] = first.removeprefix("#").strip()
    return choices


@cache
def _defaults(group: str) -> dict[str, Any]:
    path = conf_directory() / f"{DEFAULTS_FILES.get(group, f'{group}/default')}.yaml"
    defaults = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(defaults, dict)
    found = {str(key): value for key, value in defaults.items()}
    if group in PARTS:
        own = {field.name for field in fields(PARTS[group])}
        return {key: value for key, value in found.items() if key in own} | {"kind": group}
    return found


@cache
def shipped_patterns() -> frozenset[str]:
    """Patterns of layers in the packaged files. A rule's file has them for networks that have such layers."""
    patterns: set[str] = set()
    for group in ("rule", "pretrain", "experiment"):
        for path in (conf_directory() / group).rglob("*.yaml"):
            nodes: list[Any] = [OmegaConf.to_container(OmegaConf.load(path), resolve=False)]
            while nodes:
                node = nodes.pop()
                for key, value in node.items() if isinstance(node, dict) else ():
                    nodes.append(value)
                    if key in BY_LAYER and isinstance(value, dict):
                        patterns |= set(map(str, value))
    return frozenset(patterns)


def defaults_of(group: str) -> dict[str, Any]:
    """The default of every key of a group, as the packaged file has it.

    `???` stands for a key without a default, `${...}` for one that is the value of another key.

    Args:
        group: a kind of stage, or dataset, rule, model or gpu.
    """
    return dict(_defaults(group))
