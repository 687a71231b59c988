"""Who started this process, which of how many it is, and how long it waits: read from the environment, without torch.

In this order: torchrun, submitit, a bare srun; else the process is alone.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fasthebb_cli.errors import InputError

FIRST_PORT, PORTS = 20_000, 12_000  # a job's own port, where nobody names one; below those that systems give out


@dataclass(frozen=True)
class Launch:
    """One process of a run.

    Args:
        rank: its number, from 0; the first one alone writes files and speaks.
        size: how many processes the run has.
        local_rank: its number on its machine.
        address: host and port at which the first process waits for the others; empty under torchrun, which says it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: tuple[str, int] = ("", 0)

    @property
    def first(self) -> bool:
        return self.rank == 0


def launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """What the environment says.

    Raises:
        InputError: a variable is missing or no number.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        return _numbered(environment, "RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "SUBMITIT_EXECUTOR" in environment:
        return _of_submitit()
    tasks = _number({"SLURM_STEP_NUM_TASKS": "1", **environment}, "SLURM_STEP_NUM_TASKS")
    if tasks > 1 and "SLURM_PROCID" in environment:
        job = _number(environment, "SLURM_JOB_ID")
        step = _number({"SLURM_STEP_ID": "0", **environment}, "SLURM_STEP_ID")
        port = FIRST_PORT + (101 * job + step) % PORTS  # apart for the steps of a job, and for jobs in a row
        address = first_host(environment["SLURM_STEP_NODELIST"]), port
        numbered = _numbered(environment, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        return replace(numbered, address=address)
    return Launch()


def first_host(nodes: str) -> str:
    """First of a list of hosts as SLURM writes it: node[003-005,9],other -> node003."""
    name, bracket, rest = nodes.partition("[")
    if not bracket or "," in name:
        return nodes.split(",")[0]
    return name + re.split("[-,\\]]", rest)[0]


def seconds_of(name: str, usual: float) -> float:
    """A number of seconds that an environment variable may set.

    Raises:
        InputError: it is none.
    """
    text = os.environ.get(name, str(usual))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not seconds >= 0:
        raise InputError(f"environment variable {name} must be a number of seconds >= 0, not {text!r}")
    return seconds


def _of_submitit() -> Launch:
    from submitit import JobEnvironment

    job = JobEnvironment()
    if job.num_tasks == 1:
        return Launch()
    digits = "".join(letter for letter in job.job_id if letter.isdigit())
    address = job.hostnames[0], FIRST_PORT + int(digits) % PORTS
    return Launch(job.global_rank, job.num_tasks, job.local_rank, address)


def _numbered(environment: Mapping[str, str], rank: str, size: str, local_rank: str) -> Launch:
    return Launch(_number(environment, rank), _number(environment, size), _number(environment, local_rank))


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except (KeyError, ValueError) as error:
        value = environment.get(name)
        raise InputError(f"environment variable {name} must be a number, not {value!r}; who started this?") from error
