"""Errors of Hydra and of launchers as one line that names what is accepted."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from fasthebb_cli.settings.conf import group_choices
from fasthebb_cli.settings.config import GROUPS
from fasthebb_cli.settings.tools import DataConfig


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


def _load(path: Path) -> dict[str, object]:
    return yaml.safe_load(path.read_text()) or {}
