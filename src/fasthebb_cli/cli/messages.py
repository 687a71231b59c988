"""Errors of Hydra, its launchers and its sweepers as one line that names what is accepted.

words.py finds what is wrong with the user's words before Hydra does. What Hydra finds is in fields of its exceptions;
its sentences are shown and not read. Of the plugins, submitit and Optuna say what happened in sentences alone.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from fasthebb_cli.cli.words import choices
from fasthebb_cli.compute.signals import is_submitits
from fasthebb_cli.errors import RunError
from fasthebb_cli.settings.config import GROUPS

SUBMITIT = 'hydra/launcher: SLURM and local jobs need submitit; install it: pip install "fasthebb[slurm]"'
JOBLIB = 'hydra/launcher: cells side by side need joblib; install it: pip install "fasthebb[joblib]"'
OPTUNA = 'hydra/sweeper: a search needs Optuna; install it: pip install "fasthebb[optuna]"'
NOT_INSTALLED = {  # what Hydra misses -> what to do
    "hydra/launcher/submitit_slurm": SUBMITIT,
    "hydra/launcher/submitit_local": SUBMITIT,
    "hydra/launcher/joblib": JOBLIB,
    "hydra/sweeper/optuna": OPTUNA,
}
NOT_SHOWN = ("full_key:", "object_type=", "reference_type=", "See https")  # lines for Hydra's developers


def explain(error: HydraException, folders: Sequence[Path]) -> str:
    """What Hydra found while it composed.

    Args:
        folders: of further choices, beside conf/.
    """
    if isinstance(error, MissingConfigException):
        return _missing(error, folders)
    if found := unknown_key(error):
        key, accepted = found
        return f"unknown key {key}; this choice of {key.rpartition('.')[0]} accepts: {', '.join(accepted)}"
    cause = error if str(error) else error.__cause__ or error  # it wraps some of OmegaConf's without a word
    lines = [line.strip() for line in str(cause).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(NOT_SHOWN)) or type(cause).__name__


def unknown_key(error: HydraException) -> tuple[str, list[str]] | None:
    """The whole key that a choice of a group does not have, and the keys that it has; None: another error."""
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
        return str(cause.full_key), [str(key) for key in cause.parent_node]
    return None


def _missing(error: MissingConfigException, folders: Sequence[Path]) -> str:
    path = str(error.missing_cfg_file)
    if path in NOT_INSTALLED:
        return NOT_INSTALLED[path]
    group, _, choice = path.partition("/") if path.split("/")[0] in (*GROUPS, "experiment") else path.rpartition("/")
    known = choices(folders, group)
    accepted = f"; {group} can be: {', '.join(sorted({*known, *(error.options or ())}))}" if known else ""
    return f"{group}={choice}: no such choice{accepted}"


def explain_job(error: Exception) -> Exception:
    """An error that a launcher raises of cells in other processes, as one that says what to do; others as they are."""
    if is_submitits(error):
        return RunError(_submitit(str(error)))
    if type(error).__name__ == "TerminatedWorkerError":  # joblib's
        return RunError(
            "hydra/launcher=joblib: a process that ran cells was killed, perhaps for lack of memory, and the others "
            "with it; the same command goes on, with fewer at a time by hydra.launcher.n_jobs"
        )
    return error


def is_failed_search(error: Exception) -> bool:
    """Whether Optuna says that every trial failed; the table of the cells says why."""
    return isinstance(error, ValueError) and str(error).startswith("No trials are completed")


def _submitit(text: str) -> str:
    """What submitit says, over many lines, of a job that died or that SLURM refused."""
    if match := re.search(r"Job (\S+) \(task: \d+\) with path (\S+?)_result.pkl", text):
        job, path = match.groups()
        reason = re.search(r"Job not requeued because: (.*?)\.?$", text, re.MULTILINE)
        what = f"was not requeued: {reason[1]}" if reason else "ended without a result"
        rest = "The others go on; when they have ended, the same command does what is left"
        return f"job {job} {what}; see {path}_log.out. {rest}"
    lines = [line.strip(" :") for line in text.splitlines() if "error" in line.lower()] or text.splitlines()
    return f"hydra.launcher: {lines[-1]}"
