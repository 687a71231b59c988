"""The scripts that submit to SLURM, as a user calls them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SMALL, lacking
from tests.data.images import class_folders, save
from tests.disturbed import outcome, undisturbed
from tests.slurm.conftest import PATIENCE, SCRIPTS, Cluster, wait_for

ALL = sorted(SCRIPTS.glob("*.sh"))


@pytest.mark.parametrize("script", ALL, ids=lambda path: path.name)
def test_help_says_how_it_is_called(script: Path) -> None:
    done = subprocess.run([script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"scripts/{script.name} " in done.stdout
    assert "SBATCH OPTIONS" in done.stdout


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        lacking("shellcheck is not installed")
    files = [*ALL, Path(__file__).with_name("start.sh")]
    done = subprocess.run(["shellcheck", *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["job.sh", "torchrun.sh"])
def test_a_job_called_by_hand_says_how_to_submit_it(script: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "SLURM_JOB_ID"}
    done = subprocess.run([SCRIPTS / script, "train"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "submit it: sbatch" in done.stderr


@pytest.mark.parametrize("script", ALL, ids=lambda path: path.name)
def test_without_arguments_it_says_how_it_is_called(script: Path) -> None:
    done = subprocess.run([script], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"scripts/{script.name} " in done.stderr


@pytest.mark.parametrize("script", ["label_fractions.sh", "prepare_data.sh"])
def test_an_option_with_a_space_is_named(script: str) -> None:
    done = subprocess.run([SCRIPTS / script, "--partition", "gpu", "dataset=digits"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: can't read 'gpu': write options as --key=value, and settings as key=value\n"


@pytest.mark.slow
def test_options_of_a_sweep_reach_sbatch_and_a_dependency_is_added_to(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, body in (
        ("sbatch", f'printf "%s\\n" "$*" >>{tmp_path}/called; wc -l <{tmp_path}/called'),
        ("fasthebb", f'exec {sys.executable} -m fasthebb_cli "$@"'),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def call(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [str(SCRIPTS / "sweep.sh"), *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = call("--output=mine.log", "--dependency=afterok:77", "train", *SMALL, "label_fraction=0.1,0.2")
    assert done.returncode == 0, done.stderr
    first, cells = (line.split() for line in (tmp_path / "called").read_text().splitlines())
    assert "--dependency=afterok:77" in first
    assert "--dependency=afterok:77,afterok:1" in cells
    assert "--array=1,2" in cells
    for words in (first, cells):
        assert [word for word in words if word.startswith("--output")][-1] == "--output=mine.log"
    done = call("--array=1-2%1", "train", *SMALL)
    assert done.returncode == 2
    assert "ArrayTaskThrottle" in done.stderr


def submitted(cluster: Cluster, script: str, *words: str) -> list[tuple[str, str]]:
    """What a script that submits several jobs says of each: its number and what it does."""
    lines = [line for line in cluster.call(str(SCRIPTS / script), *words).splitlines() if line.startswith("job ")]
    found = [(line.removeprefix("job ").split(":")[0], line.split(": ")[1]) for line in lines]
    cluster.jobs += [job for job, _ in found]
    return found


def directories(cluster: Cluster, stage: str) -> list[Path]:
    return [path.parent for path in sorted(cluster.folder.glob(f"runs/*-{stage}-*/results.json"))]


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_a_sweep_pre_trains_in_a_job_of_its_own_before_its_cells(cluster: Cluster) -> None:
    sweep = ("--partition=low", "train", *SMALL, "out=runs", "rule=hpca,none", "label_fraction=0.1,0.2")
    jobs = submitted(cluster, "sweep.sh", *sweep)
    assert [what.split(" of ")[0] for _, what in jobs] == ["cells 3,4", "runs/" + jobs[1][1].split("/")[1], "cells 1,2"]
    (scratch, _), (pretraining, directory), (cells, _) = jobs
    assert f"afterok:{pretraining}" in cluster.state(cells)["Dependency"]
    for job in (scratch, pretraining, f"{cells}_1", f"{cells}_2"):
        assert cluster.finish(job)["JobState"] == "COMPLETED", cluster.logs()
    assert [str(path.relative_to(cluster.folder)) for path in directories(cluster, "pretrain")] == [directory]
    assert len(directories(cluster, "evaluate")) == 4
    assert cluster.logs().count("pretrain: done in") == 1
    assert cluster.logs().count("pretrain: finished before") == 2
    assert cluster.state(f"{cells}_1")["StartTime"] >= cluster.state(pretraining)["EndTime"]
    again = submitted(cluster, "sweep.sh", *sweep)
    assert [what.split(" of ")[0] for _, what in again] == ["cells 1,2,3,4"]


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_cells_wait_for_a_pre_training_that_is_requeued_and_are_requeued_themselves(cluster: Cluster) -> None:
    long = ("pretrain.epochs=15", "finetune.epochs=40")
    sweep = ("--partition=low", "train", *SMALL, "out=runs", "label_fraction=0.1,0.2", *long)
    (pretraining, _), (cells, _) = submitted(cluster, "sweep.sh", *sweep)
    wait_for(lambda: cluster.epochs() > 0, PATIENCE, cluster.logs)
    cluster.call("scancel", "--signal=USR1", pretraining)
    cluster.wait(pretraining, lambda state: state["Restarts"] == "1")
    assert cluster.state(cells)["JobState"] == "PENDING"
    assert cluster.finish(pretraining)["JobState"] == "COMPLETED", cluster.logs()
    wait_for(lambda: list(cluster.folder.glob("runs/*-0.2-*-finetune-*/metrics.jsonl")), PATIENCE, cluster.logs)
    cluster.call("scancel", "--signal=USR1", f"{cells}_2")
    cluster.wait(f"{cells}_2", lambda state: state["Restarts"] == "1")
    for cell in (f"{cells}_1", f"{cells}_2"):
        assert cluster.finish(cell)["JobState"] == "COMPLETED", cluster.logs()
    assert cluster.state(f"{cells}_1")["Restarts"] == "0"
    assert len(directories(cluster, "evaluate")) == 2


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_cells_whose_pre_training_fails_do_not_run(cluster: Cluster) -> None:
    sweep = ("--partition=low", "train", *SMALL, "out=runs", "pretrain.lr=1e30", "label_fraction=0.1,0.2")
    (pretraining, _), (cells, _) = submitted(cluster, "sweep.sh", *sweep)
    assert cluster.finish(pretraining)["JobState"] == "FAILED"
    assert cluster.finish(cells)["JobState"] == "CANCELLED"
    assert "its weights are not finite" in cluster.logs()


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_a_sweep_with_an_error_submits_nothing(cluster: Cluster) -> None:
    before = cluster.call("squeue", "--noheader")
    words = (str(SCRIPTS / "sweep.sh"), "train", *SMALL, "out=runs", "label_fraction=0.1,2")
    done = subprocess.run(words, cwd=cluster.folder, env=cluster.environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "label_fraction must be in (0, 1], not 2.0" in done.stderr
    assert cluster.call("squeue", "--noheader") == before


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_label_fractions_are_swept_with_and_without_pre_training(cluster: Cluster) -> None:
    settings = [*SMALL, "finetune.epochs=1", "out=runs", "seed=0", "label_fraction=0.1"]
    jobs = submitted(cluster, "label_fractions.sh", "--partition=low", *settings)
    for job, _ in jobs:
        assert cluster.finish(job)["JobState"] == "COMPLETED", cluster.logs()
    names = [path.name.rsplit("-", 1)[0] for path in directories(cluster, "evaluate")]
    assert names == [f"digits-conv6-w0.03-{rule}-0.1-seed0-evaluate" for rule in ("hpca", "none")]


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
@pytest.mark.parametrize(
    ("options", "size"),
    [
        (("--partition=low", "--nodes=1"), 1),
        (("--partition=low", "--nodes=1", "--ntasks-per-node=2"), 2),
        (("--partition=pair", "--nodes=2"), 2),
    ],
    ids=["one process", "two processes", "two nodes"],
)
def test_torchrun_is_requeued_on_a_signal_and_goes_on_to_the_same_bits(
    cluster: Cluster, options: tuple[str, ...], size: int
) -> None:
    long = ("pretrain.epochs=15", "finetune.epochs=2")
    settings = ("train", *SMALL, "label_fraction=0.2", "out=runs", *long)
    job = cluster.submit(*options, str(SCRIPTS / "torchrun.sh"), *settings)
    wait_for(lambda: cluster.epochs() > 0, PATIENCE, cluster.logs)
    cluster.call("scancel", "--signal=USR1", job)
    cluster.wait(job, lambda state: state["Restarts"] == "1")
    assert cluster.finish(job)["JobState"] == "COMPLETED", cluster.logs()
    assert ("2 processes" in cluster.logs()) is (size == 2)
    assert "stopped and saved at epoch" in cluster.logs()
    assert "resumed at epoch" in cluster.logs()
    assert outcome(cluster.folder / "runs") == undisturbed(*long, size=size)


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_data_are_prepared_in_a_job_without_gpus(cluster: Cluster) -> None:
    class_folders(cluster.folder / "photos", {"cats": 5, "dogs": 5})
    words = ("--partition=low", "--cpus-per-task=1", "--parsable", "dataset=image_folder", "dataset.root=photos")
    job = cluster.call(str(SCRIPTS / "prepare_data.sh"), *words, "out=packed", "dataset.size=8").strip()
    cluster.jobs.append(job)
    assert cluster.finish(job)["JobState"] == "COMPLETED", cluster.logs()
    assert list((cluster.folder / "packed").iterdir())


# fasthebb with a packing that saves after every few images, in place of every 256 MiB
SAVES_OFTEN = """
import sys
from fasthebb_cli import cli
from fasthebb_cli.prepare import command, packing
packing.BLOCK_BYTES, command.CHUNK = 20_000, 4
cli.main()
"""


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_a_stopped_packing_is_requeued_and_goes_on(cluster: Cluster) -> None:
    class_folders(cluster.folder / "photos", {"cats": 5, "dogs": 5})
    large = save(cluster.folder / "photos/cats/large.png", 10, (1000, 1000))
    for i in range(150):  # each takes some 60 ms to decode: there is time to stop it
        os.link(large, large.with_name(f"large{i:03}.png"))
    script = cluster.folder / "saves_often.py"
    script.write_text(SAVES_OFTEN)
    (cluster.folder / "bin/fasthebb").write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    words = ("--partition=low", "--cpus-per-task=1", "--parsable", "dataset=image_folder", "dataset.root=photos")
    job = cluster.call(str(SCRIPTS / "prepare_data.sh"), *words, "out=packed", "dataset.size=48").strip()
    cluster.jobs.append(job)
    journal = cluster.folder / "packed/packing.jsonl"
    wait_for(
        lambda: journal.exists() and journal.read_bytes().count(b"\n") > 1, PATIENCE, cluster.logs
    )  # after the plan
    cluster.call("scancel", "--signal=USR1", job)
    cluster.wait(job, lambda state: state["Restarts"] == "1")
    assert not (cluster.folder / "packed/packed.json").exists(), "it was done before it was stopped"
    assert cluster.finish(job)["JobState"] == "COMPLETED", cluster.logs()
    assert "stopped; the same command goes on" in cluster.logs()
    assert re.search(r"goes on after \d+ images", cluster.logs()), cluster.logs()
    assert json.loads((cluster.folder / "packed/packed.json").read_text())["images"] == 161
