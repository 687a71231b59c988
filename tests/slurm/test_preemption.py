"""Jobs of scripts/job.sh that SLURM takes the node from, as users of a shared cluster know it."""

from pathlib import Path

import pytest

from tests.conftest import SMALL
from tests.disturbed import outcome, undisturbed
from tests.slurm.conftest import SCRIPTS, Cluster, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

LONG = ("pretrain.epochs=15", "finetune.epochs=2")
WHOLE_NODE = "--exclusive"


def started(cluster: Cluster, *options: str) -> str:
    """A job in `low` that has learnt for an epoch."""
    train = ("train", *SMALL, "label_fraction=0.2", "out=runs", *LONG)
    job = cluster.submit("--partition=low", WHOLE_NODE, *options, str(SCRIPTS / "job.sh"), *train)
    wait_for(lambda: epochs(cluster.folder) > 0, 120, cluster.logs)
    return job


def epochs(folder: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in folder.glob("runs/*/metrics.jsonl"))


def test_a_preempted_job_is_requeued_and_goes_on_to_the_same_bits(cluster: Cluster) -> None:
    job = started(cluster)
    urgent = cluster.submit("--partition=high", WHOLE_NODE, "--wrap=true")
    assert cluster.finish(urgent)["JobState"] == "COMPLETED"
    assert cluster.state(job)["Restarts"] == "1"
    assert "stopped and saved at epoch" in cluster.logs()
    done = epochs(cluster.folder)
    assert cluster.finish(job)["JobState"] == "COMPLETED"
    assert f"resumed at epoch {done + 1}" in cluster.logs()
    assert outcome(cluster.folder / "runs") == undisturbed(cluster.folder / "alone", *LONG)
