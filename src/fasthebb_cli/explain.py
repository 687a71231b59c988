"""The help text, read from the configuration files, and Hydra's errors as one line that names what is accepted."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fasthebb_cli.commands import COMMANDS
from fasthebb_cli.settings.conf import group_choices
from fasthebb_cli.settings.config import GROUPS
from fasthebb_cli.settings.tools import DataConfig

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


def explain(error: BaseException, overrides: Sequence[str], conf: Path) -> str:
    """An error as one line; Hydra's own are reworded to name the key and what it accepts."""
    text = " ".join(str(error).split()) or type(error).__name__
    if match := re.search(r"Could not find '([\w/]+)/([^'/]*)'", text):
        group, choice = match.groups()
        if group.split("/")[0] in (*GROUPS, "experiment"):  # a choice may lie in a folder
            group, _, choice = f"{group}/{choice}".partition("/")
        elif choice.startswith("submitit_"):
            return 'hydra/launcher: SLURM and local jobs need submitit; install it: pip install "fasthebb[slurm]"'
        elif f"{group}/{choice}" == "hydra/sweeper/optuna":
            return 'hydra/sweeper: a search needs Optuna; install it: pip install "fasthebb[optuna]"'
        elif choice == "joblib":
            return 'hydra/launcher: cells side by side need joblib; install it: pip install "fasthebb[joblib]"'
        elif ours := group_choices(conf, group):
            return f"{group}={choice}: no such choice; fasthebb's own are: {', '.join(ours)}"
        else:
            return f"{group}={choice}: no such choice"
        return f"{group}={choice}: no such choice; {group} can be: {', '.join(group_choices(conf, group))}"
    if match := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        what = next((word.removeprefix("what=") for word in overrides if word.startswith("what=")), None)
        top = "config.yaml" if what is None else "data.yaml" if what in DataConfig.ACTIONS else "bench.yaml"
        return _unknown_key(match.group(1) or match.group(2), conf, top)
    if isinstance(error, OverrideParseException):
        word = error.override or next((word for word in overrides if not _parses(word)), "")
        return f"can't read {word!r}; an override is key=value, lists and ranges quoted: 'seed=range(0,5)'"
    if "Config group override must be" in text:
        groups = [word.partition("=") for word in overrides if word.split("=")[0] in GROUPS]
        group, _, choice = next(item for item in groups if item[2] not in group_choices(conf, item[0]))
        return f"{group}={choice}: a group needs a choice; {group} can be: {', '.join(group_choices(conf, group))}"
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{match.group(1)}: several values need -m (a sweep); a list needs brackets and quotes: 'key=[a,b]'"
    return text.split(" full_key:")[0].split(" See https")[0]


def explain_job(text: str) -> str:
    """What submitit says, over many lines, of a job that died or that SLURM refused."""
    if match := re.search(r"Job (\S+) \(task: \d+\) with path (\S+?)_result.pkl", text):
        job, path = match.groups()
        reason = re.search(r"Job not requeued because: (.*?)\.?$", text, re.MULTILINE)
        what = f"was not requeued: {reason[1]}" if reason else "ended without a result"
        rest = "The others go on; when they have ended, the same command does what is left"
        return f"job {job} {what}; see {path}_log.out. {rest}"
    lines = [line.strip(" :") for line in text.splitlines() if "error" in line.lower()] or text.splitlines()
    return f"hydra.launcher: {lines[-1]}"


def _parses(word: str) -> bool:
    if word.startswith("-"):
        return True
    try:
        OverridesParser.create().parse_override(word)
    except OverrideParseException:
        return False
    return True


def _unknown_key(key: str, conf: Path, top: str) -> str:
    group, _, name = key.partition(".")
    base = conf / "base" / f"{group}.yaml"
    files = [base] if base.exists() else sorted((conf / group).glob("*.yaml"))
    if name and files:
        known = sorted({f"{group}.{found}" for path in files for found in _load(path) if found != "defaults"})
    else:
        loaded = _load(conf / top)
        groups = [name for entry in loaded["defaults"] if isinstance(entry, dict) for name in entry if name in GROUPS]  # type: ignore[attr-defined]
        known = [found for found in loaded if found not in ("defaults", "hydra")] + groups
    near = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown key {key}; {hint}accepted here: {', '.join(known)}"


def _keys(path: Path) -> list[tuple[str, str]]:
    """Top-level keys of a configuration, as key=default, with their comments."""
    found = re.findall(r"^(\w+): (\S+)\s+# (.*)$", path.read_text(), re.MULTILINE)
    return [(f"{key}={value}", text) for key, value, text in found if key not in ("verb", "dry_run", "what")]


def _load(path: Path) -> dict[str, object]:
    return yaml.safe_load(path.read_text()) or {}
