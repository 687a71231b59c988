"""Sweeps whose cells are jobs of submitit's: local ones, which need no SLURM, and those of SLURM."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor

from fasthebb.rules import Terms, hpca
from fasthebb_cli.compute import processes
from fasthebb_cli.settings.conf import conf_directory
from tests.conftest import SMALL, Ran
from tests.disturbed import outcome, undisturbed
from tests.lives import Life
from tests.lives import command as command_of
from tests.slurm.conftest import PATIENCE, Cluster, wait_for

LONG = ("pretrain.epochs=60", "finetune.epochs=2")


def sweep(folder: Path, *arguments: str, environment: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "fasthebb_cli", "train", "-m", *SMALL, "label_fraction=0.2", "out=runs", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def text_of(folder: Path, pattern: str) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob(pattern)))


calls = 0


def signalling(y_NGK: Tensor, *, number: int, file: str) -> Terms:
    """hpca that sends the first process of the run a signal at its 50th call, once: unless there is the file."""
    global calls
    calls += 1
    if calls == 50 and processes.is_first() and not Path(file).exists():
        Path(file).touch()
        signal.raise_signal(number)
    return hpca(y_NGK)


def signalled(tmp_path: Path, number: signal.Signals) -> tuple[str, ...]:
    """Settings of a run that gets a signal once."""
    options = (f"+rule.options.number={int(number)}", f"+rule.options.file={tmp_path / 'signalled'}")
    return ("rule=own", "rule.name=tests.slurm.test_submitit:signalling", *options, "pretrain.lr=0.01")


def local_sweep(folder: Path, *arguments: str, **variables: str) -> Life:
    """In a process that has torch imported; its jobs are processes of their own."""
    words = ["train", "-m", *SMALL, "label_fraction=0.2", "out=runs", *arguments]
    here = {"FASTHEBB_SAVE_SECONDS": "1000", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return Life(partial(_there, folder, command_of(words)), folder / "log", variables=here | variables)


def _there(folder: Path, target: Callable[[], None]) -> None:
    os.chdir(folder)
    target()


def logs(folder: Path) -> str:
    return text_of(folder, "runs/.jobs/*/*_log.out")


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.marathon)])
def test_a_local_job_told_to_stop_starts_again_in_the_same_directory(tmp_path: Path, size: int) -> None:
    """Its tasks are one run, which stops and goes on as one."""
    settings = (*signalled(tmp_path, signal.SIGUSR2), "model.dropout=0")
    tasks = f"hydra.launcher.tasks_per_node={size}"
    launcher = local_sweep(tmp_path, "hydra/launcher=local", tasks, "seed=0", *settings)
    assert launcher.wait() == 0, launcher.text() + logs(tmp_path)
    assert ("2 processes" in logs(tmp_path)) is (size == 2)
    assert logs(tmp_path).count("Starting with JobEnvironment") == 2 * size
    assert re.search(r"stopped and saved at epoch 1, step \d+", logs(tmp_path))
    assert re.search(r"resumed at epoch 1, step \d+", logs(tmp_path))
    assert outcome(tmp_path / "runs") == undisturbed(*settings, size=size)


@pytest.mark.marathon
def test_a_local_job_that_dies_is_named_in_one_line(tmp_path: Path) -> None:
    launcher = local_sweep(tmp_path, "hydra/launcher=local", "seed=0", *signalled(tmp_path, signal.SIGKILL))
    assert launcher.wait() == 1, launcher.text()
    text = launcher.text()
    assert re.fullmatch(r"error: job \d+ ended without a result; see \S+_log.out. The others go on; .*\n", text)
    assert Path(re.findall(r"see (\S+_log.out)", text)[0]).exists()


@pytest.mark.marathon
def test_a_site_has_launchers_of_its_own(tmp_path: Path) -> None:
    site = tmp_path / "site" / "hydra" / "launcher"
    site.mkdir(parents=True)
    site.joinpath("ours.yaml").write_text("defaults: [local, _self_]\nsubmitit_folder: ${hydra.sweep.dir}/.ours/%j\n")
    words = ("hydra/launcher=ours", "stages=[pretrain]", "pretrain.epochs=1")
    launcher = local_sweep(tmp_path, *words, FASTHEBB_CONF=str(tmp_path / "site"))
    assert launcher.wait() == 0, launcher.text()
    assert "pretrain: done" in text_of(tmp_path, "runs/.ours/*/*_log.out")


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("slurm", {"gpus_per_node": None, "tasks_per_node": 1, "nodes": 1}),
        ("slurm_cpu", {"gpus_per_node": None, "tasks_per_node": 1, "nodes": 1}),
        ("slurm_gpu", {"gpus_per_node": 1, "tasks_per_node": 1, "nodes": 1}),
        ("slurm_node", {"gpus_per_node": 4, "tasks_per_node": 4, "nodes": 1}),
        ("slurm_nodes", {"gpus_per_node": 4, "tasks_per_node": 4, "nodes": 2}),
    ],
)
def test_presets_of_slurm_requeue_and_have_a_process_a_gpu(preset: str, expected: dict[str, int | None]) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_directory()), version_base="1.3"):
        words = ["verb=train", "dataset=digits", f"hydra/launcher={preset}"]
        config = compose("config", words, return_hydra_config=True)
    chosen = config.hydra.launcher
    assert chosen.max_num_timeout >= 100  # none by default
    assert chosen.signal_delay_s >= 60
    assert chosen.submitit_folder == "runs/.jobs/%j"
    assert {key: chosen[key] for key in expected} == expected


def test_an_unknown_launcher_names_those_there_are(command: Callable[..., Ran]) -> None:
    ran = command("train", "-m", "hydra/launcher=slrum")
    assert ran.code == 2
    assert "slurm_gpu, slurm_node, slurm_nodes" in ran.err


def test_help_lists_the_launchers(command: Callable[..., Ran]) -> None:
    assert "slurm_nodes" in command("--help", small=False).out


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_preempted_jobs_of_a_sweep_are_requeued_and_it_ends_in_its_table(cluster: Cluster) -> None:
    slurm = ("hydra/launcher=slurm_cpu", "hydra.launcher.partition=low", "hydra.launcher.cpus_per_task=1")
    launcher = sweep(cluster.folder, *slurm, "seed=0,1", *LONG, environment=cluster.environment)
    wait_for(lambda: len(list(cluster.folder.glob("runs/*/metrics.jsonl"))) == 2, PATIENCE, cluster.logs)
    wait_for(lambda: cluster.epochs() > 1, PATIENCE, cluster.logs)
    jobs = cluster.call("squeue", "--noheader", "--array", "--format=%i").split()
    assert len(jobs) == 2
    cluster.jobs += jobs
    urgent = cluster.submit("--partition=high", "--exclusive", "--wrap=true")
    assert cluster.finish(urgent)["JobState"] == "COMPLETED"
    assert [cluster.state(job)["Restarts"] for job in jobs] == ["1", "1"]
    assert cluster.logs().count("stopped and saved at epoch") == 2
    for job in jobs:
        assert cluster.finish(job)["JobState"] == "COMPLETED"
    text = launcher.communicate(timeout=120)[0]
    assert launcher.returncode == 0, text
    assert cluster.logs().count("resumed at epoch") == 2
    assert re.search(r"where *\n0 .*[0-9a-f]{8}", text), text
    assert outcome(cluster.folder / "runs") == undisturbed("seed=0", *LONG) | undisturbed("seed=1", *LONG)


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_a_cancelled_job_of_a_sweep_stays_away(cluster: Cluster) -> None:
    slurm = ("hydra/launcher=slurm_cpu", "hydra.launcher.partition=low", "hydra.launcher.cpus_per_task=1")
    launcher = sweep(cluster.folder, *slurm, "seed=0", *LONG, environment=cluster.environment)
    wait_for(lambda: cluster.epochs() > 0, PATIENCE, cluster.logs)
    (job,) = cluster.call("squeue", "--noheader", "--format=%i").split()
    cluster.call("scancel", job)
    state = cluster.finish(job)
    wait_for(lambda: "stopped and saved at epoch" in cluster.logs(), 30, cluster.logs)
    time.sleep(3)  # for a requeue to come through
    assert (cluster.state(job)["JobState"], state["Restarts"]) == ("CANCELLED", "0")
    launcher.kill()  # it asks sacct, which a SLURM without a data base does not have
    launcher.communicate()
