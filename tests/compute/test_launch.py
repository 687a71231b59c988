"""Processes started by torchrun, submitit, srun, or alone; and which part of a batch each one reads."""

import pytest

from fasthebb_cli import cli
from fasthebb_cli.compute import processes
from fasthebb_cli.compute.launch import Launch, first_host, launch
from fasthebb_cli.errors import InputError

SRUN = {
    "SLURM_JOB_ID": "41", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}  # fmt: skip


def test_torchrun_comes_first() -> None:
    told = {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert launch(SRUN | told) == Launch(5, 8, 1)


@pytest.mark.parametrize("tasks", [2, 1])
def test_submitit_comes_before_srun(tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """srun starts submitit's tasks. A single task is alone, whatever job step it is in."""
    told = {
        "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "77", "SUBMITIT_LOCAL_NTASKS": str(tasks),
        "SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_LOCALID": "0",
    }  # fmt: skip
    for name, value in (SRUN | told).items():
        monkeypatch.setenv(name, value)
    found = launch()
    assert (found.rank, found.size, found.local_rank) == ((1, 2, 0) if tasks == 2 else (0, 1, 0))
    assert found.address[1] == (20_077 if tasks == 2 else 0)


def test_srun() -> None:
    assert launch(SRUN) == Launch(3, 4, 1, ("gpu07", 24_141))
    assert launch(SRUN | {"SLURM_STEP_ID": "2"}).address == ("gpu07", 24_143), "two steps of a job are two runs"


@pytest.mark.parametrize("environment", [{}, {"SLURM_JOB_ID": "41", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}])
def test_alone(environment: dict[str, str]) -> None:
    """A batch script runs outside of srun, so it is not one of its tasks."""
    assert launch(environment) == Launch()


def test_a_single_task_of_srun_is_alone() -> None:
    assert launch(SRUN | {"SLURM_STEP_NUM_TASKS": "1"}) == Launch()


def test_a_variable_that_is_no_number_is_named() -> None:
    with pytest.raises(InputError, match="environment variable RANK must be a number, not 'one'"):
        launch({"TORCHELASTIC_RUN_ID": "x", "RANK": "one", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})
    with pytest.raises(InputError, match="environment variable SLURM_STEP_NUM_TASKS must be a number, not 'many'"):
        launch(SRUN | {"SLURM_STEP_NUM_TASKS": "many"})


@pytest.mark.parametrize("words", [["train", "dataset=digits"], ["runs"]])
def test_it_is_one_line_to_the_user(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "many")
    assert cli.run(words) == 2
    line = "error: environment variable SLURM_STEP_NUM_TASKS must be a number, not 'many'; who started this?\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("one", "one"),
        ("a,b", "a"),
        ("node[003-005,009]", "node003"),
        ("node[7,9-11],other", "node7"),
        ("login,node[1-2]", "login"),
    ],
)
def test_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize(("size", "total"), [(1, 5), (3, 10), (4, 3), (4, 0)])
def test_parts_make_up_the_whole(monkeypatch: pytest.MonkeyPatch, size: int, total: int) -> None:
    monkeypatch.setattr(processes, "count", lambda: size)
    places: list[int] = []
    lengths = []
    for rank in range(size):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        part = list(range(total))[processes.part_of(total)]
        places += part
        lengths.append(len(part))
    assert places == list(range(total))
    assert max(lengths) - min(lengths) <= 1
