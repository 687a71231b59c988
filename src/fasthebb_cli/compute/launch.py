"""Which process of a run this is, and how long it waits: read from environment variables, without torch.

torchrun, submitit and srun are recognised, in this order; otherwise the process is alone.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fasthebb_cli.errors import InputError

FIRST_PORT, PORTS = 20_000, 12_000  # SLURM names no port, so each job takes one below those that systems hand out


@dataclass(frozen=True)
class Launch:
    """One process of a run.

    Args:
        rank: its number, from 0. Only rank 0 writes files and prints.
        size: number of processes in the run (the world size).
        local_rank: its number on its machine, from 0.
        address: host and port at which rank 0 waits for the others; empty under torchrun, which sets it itself.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: tuple[str, int] = ("", 0)

    @property
    def first(self) -> bool:
        return self.rank == 0


def launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """This process, as the environment variables describe it.

    Raises:
        InputError: a variable is missing, or is not a number.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        return _numbered(environment, "RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "SUBMITIT_EXECUTOR" in environment:
        return _of_submitit()
    tasks = _number({"SLURM_STEP_NUM_TASKS": "1", **environment}, "SLURM_STEP_NUM_TASKS")
    if tasks > 1 and "SLURM_PROCID" in environment:
        job = _number(environment, "SLURM_JOB_ID")
        step = _number({"SLURM_STEP_ID": "0", **environment}, "SLURM_STEP_ID")
        port = FIRST_PORT + (101 * job + step) % PORTS  # another for each step of a job, and for consecutive jobs
        address = first_host(environment["SLURM_STEP_NODELIST"]), port
        numbered = _numbered(environment, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        return replace(numbered, address=address)
    return Launch()


def first_host(nodes: str) -> str:
    """First host of a list in SLURM's format: node[003-005,9],other -> node003."""
    name, bracket, rest = nodes.partition("[")
    if not bracket or "," in name:
        return nodes.split(",")[0]
    return name + re.split("[-,\\]]", rest)[0]


def seconds_of(name: str, usual: float) -> float:
    """The seconds that an environment variable sets, or `usual` if it is not set.

    Raises:
        InputError: it is not a number >= 0.
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
