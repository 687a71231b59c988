"""Several processes of one run under SLURM, started by srun and by submitit: one run, stopped and requeued as one."""

import os
import signal

import pytest

from fasthebb_cli.compute.launch import first_host
from tests.conftest import SMALL
from tests.disturbed import outcome, undisturbed
from tests.slurm.conftest import PATIENCE, SCRIPTS, Cluster, wait_for
from tests.slurm.test_submitit import sweep

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

LONG = ("pretrain.epochs=60", "finetune.epochs=2", "model.dropout=0")


@pytest.mark.parametrize("options", [("--partition=low",), ("--partition=pair", "--nodes=2")], ids=["node", "nodes"])
def test_tasks_of_srun_are_one_run_that_is_requeued_as_one(cluster: Cluster, options: tuple[str, ...]) -> None:
    settings = ("train", *SMALL, "label_fraction=0.2", "out=runs", *LONG)
    job = cluster.submit(*options, "--ntasks=2", str(SCRIPTS / "job.sh"), *settings)
    wait_for(lambda: cluster.epochs() > 0, PATIENCE, cluster.logs)
    cluster.call("scancel", "--signal=USR1", job)
    cluster.wait(job, lambda state: state["Restarts"] == "1")
    assert cluster.finish(job)["JobState"] == "COMPLETED", cluster.logs()
    logs = cluster.logs()
    assert "2 processes" in logs
    assert logs.count("stopped and saved at epoch") >= 1
    assert "resumed at epoch" in logs
    assert outcome(cluster.folder / "runs") == undisturbed(*LONG, size=2)


def test_a_task_that_dies_ends_the_job(cluster: Cluster) -> None:
    settings = ("pretrain", *SMALL, "out=runs", "pretrain.epochs=5000")
    job = cluster.submit("--partition=low", "--ntasks=2", str(SCRIPTS / "job.sh"), *settings)
    wait_for(lambda: cluster.epochs() > 0, PATIENCE, cluster.logs)
    os.kill(second_task(job), signal.SIGKILL)
    assert cluster.finish(job, 60)["JobState"] == "FAILED", cluster.logs()


def test_tasks_of_submitit_are_one_run(cluster: Cluster) -> None:
    tasks = ("hydra.launcher.partition=low", "hydra.launcher.cpus_per_task=1", "hydra.launcher.tasks_per_node=2")
    launcher = sweep(cluster.folder, "hydra/launcher=slurm_cpu", *tasks, *LONG, environment=cluster.environment)
    text = launcher.communicate(timeout=240)[0]
    assert launcher.returncode == 0, text + cluster.logs()
    assert outcome(cluster.folder / "runs") == undisturbed(*LONG, size=2)


def test_the_first_host_is_that_of_scontrol(cluster: Cluster) -> None:
    for nodes in ("a1", "n[003-005,9],b", "x,n[1-2]"):
        assert first_host(nodes) == cluster.call("scontrol", "show", "hostnames", nodes).split()[0]


def second_task(job: str) -> int:
    """Process number of the task with SLURM_PROCID=1 that is Python."""
    for folder in os.listdir("/proc"):
        if folder.isdigit():
            try:
                with open(f"/proc/{folder}/environ", "rb") as file:
                    told = file.read().split(b"\0")
                with open(f"/proc/{folder}/comm") as file:
                    name = file.read()
            except OSError:
                continue
            if f"SLURM_JOB_ID={job}".encode() in told and b"SLURM_PROCID=1" in told and name.startswith("python"):
                return int(folder)
    raise AssertionError("the second task is not there")
