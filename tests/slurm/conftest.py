"""The SLURM that `tests/slurm/start.sh` starts, and jobs in it."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import lacking

CONFIGURATION = Path("/tmp/fasthebb-slurm/slurm.conf")
SHORT_WAIT = 5  # seconds, in place of two minutes; started in the second in which it ended, a job would be refused
PATIENCE = 280  # seconds, of tests on a machine that has other work; a test itself ends after 300
SCRIPTS = Path(__file__).parents[2] / "scripts"


class Cluster:
    """Submits jobs from `folder` and asks SLURM about them.

    Args:
        environment: of the jobs; `fasthebb` is on its path.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.jobs: list[str] = []
        self.hastened: set[tuple[str, str]] = set()

    def call(self, *words: str) -> str:
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *words: str) -> str:
        """The number of a new job."""
        job = self.call("sbatch", "--parsable", *words).strip()
        self.jobs.append(job)
        return job

    def state(self, job: str) -> dict[str, str]:
        """What SLURM says of a job: JobState, Restarts, Reason, ExitCode and so on."""
        words = self.call("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, reached: Callable[[dict[str, str]], bool], seconds: float = PATIENCE) -> dict[str, str]:
        """The state of a job once it is as wanted; one that is requeued does not wait for as long as SLURM lets it."""
        state: dict[str, str] = {}

        def look() -> bool:
            nonlocal state
            state = self.state(job)
            life = (state["JobId"], state["Restarts"])
            if state["Reason"] == "BeginTime" and life not in self.hastened:
                self.hastened.add(life)
                self.call("scontrol", "update", f"JobId={job}", f"StartTime=now+{SHORT_WAIT}")
            return reached(state)

        wait_for(look, seconds, lambda: f"{state}\n{self.logs()}")
        return state

    def finish(self, job: str, seconds: float = PATIENCE) -> dict[str, str]:
        """The state of a job that has come to its end."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        return self.wait(job, lambda state: state["JobState"] in ended, seconds)

    def queued(self) -> list[str]:
        """Own jobs that have not come to their end."""
        words = ("squeue", "--noheader", "--format=%A %T", f"--jobs={','.join(self.jobs)}")
        return subprocess.run(words, env=self.environment, capture_output=True, text=True).stdout.splitlines()

    def epochs(self) -> int:
        """How many are done below `runs`, by all stages."""
        return sum(len(path.read_text().splitlines()) for path in self.folder.glob("runs/*/metrics.jsonl"))

    def logs(self) -> str:
        return "".join(f"== {path.name}\n{path.read_text()}\n" for path in sorted(self.folder.rglob("*[._]log*")))


def wait_for(condition: Callable[[], object], seconds: float, report: Callable[[], str]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, report()
        time.sleep(0.1)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A running SLURM with the partitions `low`, `high` and `pair`, whose jobs find `fasthebb`."""
    monkeypatch.setenv("SLURM_CONF", str(CONFIGURATION))
    if not CONFIGURATION.exists() or subprocess.run(["sinfo"], capture_output=True).returncode != 0:
        lacking("no SLURM is running here; tests/slurm/start.sh starts one (as root, with slurm-wlm and munge)")
    command = tmp_path / "bin" / "fasthebb"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m fasthebb_cli "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{Path(sys.executable).parent}", prepend=":")
    monkeypatch.setenv("FASTHEBB_SAVE_SECONDS", "1000")  # what is saved is saved because of a signal
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cluster = Cluster(tmp_path, dict(os.environ))
    with CONFIGURATION.with_name("lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one test at a time: they preempt each other's jobs
        yield cluster
        if cluster.jobs:
            subprocess.run(["scancel", *cluster.jobs], env=cluster.environment)
            wait_for(lambda: not cluster.queued(), 60, lambda: str(cluster.queued()))
