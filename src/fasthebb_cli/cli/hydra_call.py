"""Hydra behind the command: its command line made from the user's words, and its errors made into exit codes."""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from fasthebb_cli.cli import sweep
from fasthebb_cli.cli.failures import TRACEBACK_VARIABLE, code_of, fail
from fasthebb_cli.cli.messages import explain_job
from fasthebb_cli.compute.launch import launch
from fasthebb_cli.compute.signals import STOPPED, is_submitits
from fasthebb_cli.errors import InputError, RunError
from fasthebb_cli.settings.conf import conf_directory

OPEN_KEY = r"[\w.]+\.(layer_lr|options|layer_options|teacher_units|optimizer_options)(\.[^=]+)?="  # mappings
HYDRA_FLAGS = ("-m", "--multirun", "--resolve")
CFG, INFO = ("job", "hydra", "all"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
HYDRA_FLAGS_WITH_VALUE: dict[str, tuple[str, ...]] = {  # and what is accepted; empty: anything
    "-c": CFG, "--cfg": CFG, "-i": INFO, "--info": INFO, "-p": (), "--package": (), "-cd": (), "--config-dir": (),
}  # fmt: skip


def for_hydra(first: str, words: Sequence[str]) -> list[str]:
    """Hydra's command line: its flags first, then the overrides in one piece, which is all that it can read."""
    flags, overrides = [], [first]
    rest = iter(words)
    for word in rest:
        if word == "--dry-run":
            overrides.append("dry_run=true")
        elif word == "--traceback":
            os.environ[TRACEBACK_VARIABLE] = "1"
        elif word in HYDRA_FLAGS:
            flags.append(word)
        elif word in HYDRA_FLAGS_WITH_VALUE:
            value, accepted = next(rest, ""), HYDRA_FLAGS_WITH_VALUE[word]
            if not value or (accepted and value not in accepted):
                raise InputError(f"{word} needs a value" + (f", one of {', '.join(accepted)}" if accepted else ""))
            flags += [word, value]
        elif word.startswith("-"):
            raise InputError(f"unknown flag {word}; settings are key=value (see fasthebb --help)")
        elif not word.strip():
            raise InputError("can't read ''; an override is key=value")
        elif match := re.fullmatch(r"(model|rule|dataset)=([\w.]+:[\w.]+)", word):  # not a file's name
            overrides += [f"{match[1]}=own", f"{match[1]}.name={match[2]}"]
        elif re.match(OPEN_KEY, word):  # Hydra would have them in the group's file already, or with a + before them
            overrides.append(f"++{word}")
        else:
            overrides.append(word)
    if {"-m", "--multirun"} & set(flags) and any(word.startswith("out=") and "," in word for word in overrides):
        raise InputError("out can't be swept: its cells report below one folder")
    return [*flags, *overrides]


def here_and_now(words: Sequence[str], what: str) -> list[str]:
    """The words with every cell in this process, one after the other, whatever launcher they ask for.

    Raises:
        InputError: they ask for a search; `what` names what can't be done with one.
    """
    if any(word.startswith("hydra/sweeper=") for word in words):
        raise InputError(f"hydra/sweeper: a search makes its cells as it goes; {what} needs a sweep without one")
    return [word for word in words if not word.startswith(("hydra/launcher=", "hydra.launcher."))]


def run_hydra(task: Callable[[DictConfig], object], words: list[str], config: str = "config") -> int:
    """Composes `config` with the words, calls the task with each cell's configuration and returns the exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra re-raises what it would otherwise print over several lines
    site = os.environ.get("FASTHEBB_CONF")
    if site and Path(site).is_dir():
        words = [*words, f"hydra.searchpath=[file://{Path(site).resolve()}]"]
    sweep.begin()
    if "dry_run=true" in words:
        words = here_and_now(words, "--dry-run")
    if "dry_run=true" in words or not launch().first:  # Hydra makes its folder; these leave nothing behind
        with tempfile.TemporaryDirectory() as folder:
            words = [*words, f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"]
            return _call_hydra(task, words, config)
    return _call_hydra(task, words, config)


def explained(error: Exception) -> Exception:
    """What launchers raise of cells in other processes, in words."""
    if is_submitits(error):
        return RunError(explain_job(str(error)))
    if type(error).__name__ == "TerminatedWorkerError":  # joblib's
        return RunError(
            "hydra/launcher=joblib: a process that ran cells was killed, perhaps for lack of memory, and the others "
            "with it; the same command goes on, with fewer at a time by hydra.launcher.n_jobs"
        )
    return error


def _call_hydra(task: Callable[[DictConfig], object], words: list[str], config: str) -> int:
    before, sys.argv = sys.argv, ["fasthebb", *words]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name=config)(task)()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        return STOPPED
    except HydraException as error:  # some are OSErrors too
        return fail(error, words) if launch().first else code_of(error)
    except OSError as error:  # Hydra makes the folder
        return fail(RunError(f"out: can't use {error.filename} ({error.strerror}); choose another out=DIR"))
    except Exception as error:  # noqa: BLE001  the door: everything becomes an exit code
        done = sweep.end_early()
        if str(error).startswith("No trials are completed"):  # Optuna's; why stands in the table
            return done
        return fail(explained(error), words)
    finally:
        sys.argv = before
    return 0
