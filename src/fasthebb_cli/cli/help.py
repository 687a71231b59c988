"""The help text, read from the configuration files."""

import re
from collections.abc import Iterable
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fasthebb_cli.cli.commands import COMMANDS
from fasthebb_cli.settings.conf import group_choices
from fasthebb_cli.settings.config import GROUPS

EXAMPLES = [
    ("fasthebb train", "pre-train, fine-tune, evaluate on the embedded digits"),
    ("fasthebb train dataset=imagenet rule=hpca", "the same on ImageNet (dataset.root=DIR or FASTHEBB_DATA)"),
    ("fasthebb train -m label_fraction=0.01,0.1 rule=hpca,none 'seed=range(0,3)'", "a sweep; pre-trains once a seed"),
    ("fasthebb pretrain dataset=image_folder dataset.root=photos", "features from a folder of photographs, no labels"),
    ("fasthebb data info dataset=image_folder dataset.root=photos", "counts, mean and deviation, samples as a picture"),
    ("fasthebb data prepare dataset=imagenet out=packed", "check every image and pack them; then dataset.root=packed"),
    ("fasthebb train ... --dry-run", "what a run would do, and how long it would take"),
    ("fasthebb train ... --cfg job", "the composed configuration"),
]
VERB_LINES = {
    "train": "pre-train, fine-tune and evaluate",
    "pretrain": "learn features from all training images, without labels",
    "finetune": "learn to classify from the labelled fraction",
    "probe": "what every layer knows: linear classifiers, k-NN, SVM and retrieval on frozen features",
    "evaluate": "accuracy on the test images",
    "cells": "a sweep's cells, a command a line, for scripts/sweep.sh: fasthebb cells train key=a,b ...",
    "report": "tables, curves and one HTML page from finished runs: fasthebb report RUNS ... [out=DIR]",
    "runs": "every run with its state and numbers: fasthebb runs [RUNS ...] [state=failed]",
    "compare": "how two runs differ in settings and results: fasthebb compare DIRECTORY DIRECTORY",
    "bench": "speed and memory: fasthebb bench step, layer, scale or data (conf/bench.yaml has the keys)",
    "data": "check and pack images, or say what is in a data set: fasthebb data prepare or info (conf/data.yaml)",
    "predict": "classes of a folder's images as a csv: fasthebb predict MODEL FOLDER",
    "features": "a layer's output for a folder's images as an array: fasthebb features MODEL FOLDER layer=conv3",
}
FLAGS = [
    ("-m", "run every combination of comma-separated values"),
    ("--dry-run", "say what would be done: stages, labels, directories, time"),
    ("--cfg job", "print the composed configuration"),
    ("--traceback", "show where an error comes from"),
    ("--version", "print the version"),
    ("-sc install=bash", 'shell completion (also zsh, fish): eval "$(fasthebb -sc install=bash)"'),
]


def help_page(conf: Path) -> Group:
    """All of it: verbs, groups with each choice and its line, keys, flags, examples."""
    parts: list[RenderableType] = ["[bold]fasthebb[/] VERB key=value ..."]
    parts += _section("verbs", VERB_LINES.items())
    for group in (*GROUPS, "experiment", "hydra/launcher"):
        parts += _section(f"{group}=", group_choices(conf, group).items())
    parts += _section("keys", _keys(conf / "config.yaml"))
    parts += _section("flags", FLAGS)
    parts += ["", "[bold]examples[/]"]
    for command, text in EXAMPLES:
        parts.append(Padding(Text(f"$ {command}"), (0, 0, 0, 2)))
        parts.append(Padding(Text(text, style="dim"), (0, 0, 0, 6)))
    return Group(*parts)


def tool_page(conf: Path, verb: str) -> Group:
    """Of a verb with a configuration of its own, `bench` or `data`: what it does, and its keys."""
    path = conf / f"{verb}.yaml"
    parts: list[RenderableType] = [f"[bold]fasthebb {verb}[/] WHAT key=value ...", "", Text(VERB_LINES[verb])]
    parts += _section("keys", _keys(path))
    parts += ["", Text("and the groups and flags of fasthebb --help", style="dim")]
    return Group(*parts)


def command_page(name: str) -> Group:
    """Of a command without a composed configuration: what it does, its settings, an example."""
    usage = COMMANDS[name]
    keys = " key=value ..." if usage.keys else ""
    parts: list[RenderableType] = [Text.assemble((f"fasthebb {name}", "bold"), f" {usage.paths}{keys}"), ""]
    parts.append(Text(VERB_LINES[name].partition(": fasthebb")[0]))
    parts += _section("settings", [(f"{key}={setting.default}", setting.line) for key, setting in usage.keys.items()])
    parts += ["", "[bold]example[/]", Padding(Text(f"$ {usage.example}"), (0, 0, 0, 2))]
    return Group(*parts)


def _section(title: str, rows: Iterable[tuple[str, str]]) -> list[RenderableType]:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="cyan", min_width=14)
    grid.add_column(overflow="fold")
    for name, text in rows:
        grid.add_row(Text(name), Text(text))
    return ["", f"[bold]{title}[/]", Padding(grid, (0, 0, 0, 2))] if grid.row_count else []


def _keys(path: Path) -> list[tuple[str, str]]:
    """Top-level keys of a configuration, as key=default, with their comments."""
    found = re.findall(r"^(\w+): (\S+)\s+# (.*)$", path.read_text(), re.MULTILINE)
    return [(f"{key}={value}", text) for key, value, text in found if key not in ("verb", "dry_run", "what")]
