"""Jobs of scripts/job.sh that SLURM takes the node from, as users of a shared cluster know it."""

import pytest

from tests.conftest import SMALL
from tests.disturbed import outcome, undisturbed
from tests.slurm.conftest import SCRIPTS, Cluster, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

LONG = ("pretrain.epochs=60", "finetune.epochs=2")
WHOLE_NODE = "--exclusive"


def started(cluster: Cluster, *options: str, settings: tuple[str, ...] = LONG) -> str:
    """A job in `low` that has learnt for an epoch."""
    train = ("train", *SMALL, "label_fraction=0.2", "out=runs", *settings)
    job = cluster.submit("--partition=low", WHOLE_NODE, *options, str(SCRIPTS / "job.sh"), *train)
    cluster.wait(job, lambda state: cluster.epochs() > 0)
    return job


def test_a_preempted_job_is_requeued_and_goes_on_to_the_same_bits(cluster: Cluster) -> None:
    job = started(cluster)
    urgent = cluster.submit("--partition=high", WHOLE_NODE, "--wrap=true")
    assert cluster.finish(urgent)["JobState"] == "COMPLETED"
    assert cluster.state(job)["Restarts"] == "1"
    assert "stopped and saved at epoch" in cluster.logs()
    done = cluster.epochs()
    assert cluster.finish(job)["JobState"] == "COMPLETED"
    assert f"resumed at epoch {done + 1}" in cluster.logs()
    assert outcome(cluster.folder / "runs") == undisturbed(*LONG)


def test_a_job_whose_time_is_up_saves_before_and_is_requeued(cluster: Cluster) -> None:
    endless = ("pretrain.epochs=100000",)
    job = started(cluster, "--time=2", "--signal=USR1@60", settings=endless)
    cluster.wait(job, lambda state: state["Restarts"] == "1", 180)
    assert "stopped and saved at epoch" in cluster.logs()
    assert "TIME LIMIT" not in cluster.logs()


def test_a_cancelled_job_saves_and_stays_away(cluster: Cluster) -> None:
    job = started(cluster)
    cluster.call("scancel", job)
    assert cluster.finish(job)["JobState"] == "CANCELLED"
    wait_for(lambda: "stopped and saved at epoch" in cluster.logs(), 30, cluster.logs)
    assert cluster.state(job)["Restarts"] == "0"
