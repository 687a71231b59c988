"""Errors of Hydra and its plugins as one line: a test for each entry of messages.py."""

import pytest
from hydra.errors import ConfigCompositionException, MissingConfigException

from fasthebb_cli.cli.messages import NOT_INSTALLED, explain, explain_job
from fasthebb_cli.errors import RunError


@pytest.mark.parametrize(
    ("path", "extra"),
    [
        ("hydra/launcher/joblib", "joblib"),
        ("hydra/launcher/submitit_local", "slurm"),
        ("hydra/launcher/submitit_slurm", "slurm"),
        ("hydra/sweeper/optuna", "optuna"),
    ],
)
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(path: str, extra: str) -> None:
    assert set(NOT_INSTALLED) >= {path}
    text = explain(MissingConfigException("Could not find it", path), [])
    assert text.endswith(f'install it: pip install "fasthebb[{extra}]"')


def test_lines_for_developers_are_left_out() -> None:
    text = "Key 'x' is not in struct\n    full_key: a.x\n    object_type=dict\nSee https://hydra.cc for details"
    assert explain(ConfigCompositionException(text), []) == "Key 'x' is not in struct"


def test_an_error_without_a_word_is_told_by_its_cause() -> None:
    error = ConfigCompositionException()
    error.__cause__ = ValueError("no such resolver")
    assert explain(error, []) == "no such resolver"


def test_a_job_without_a_result_is_named_with_its_log() -> None:
    utils = pytest.importorskip("submitit.core.utils")
    job = utils.UncompletedJobError(
        "Job 12_3 (task: 0) with path /runs/.jobs/12_3/12_3_0_result.pkl\nhas not produced any output (state: FAILED)"
    )
    said = explain_job(job)
    assert isinstance(said, RunError)
    assert str(said).startswith(
        "job 12_3 ended without a result; see /runs/.jobs/12_3/12_3_0_log.out. The others go on"
    )
    gone = utils.UncompletedJobError(f"{job}\nJob not requeued because: timed-out and not checkpointable.")
    assert "job 12_3 was not requeued: timed-out and not checkpointable; see" in str(explain_job(gone))


def test_a_job_that_slurm_refuses_is_told_in_slurms_words() -> None:
    utils = pytest.importorskip("submitit.core.utils")
    text = "Command failed:\nsbatch: error: invalid partition specified: none\nsbatch: some hint"
    assert (
        str(explain_job(utils.FailedJobError(text)))
        == "hydra.launcher: sbatch: error: invalid partition specified: none"
    )


def test_other_errors_stay_as_they_are() -> None:
    error = KeyError("speed")
    assert explain_job(error) is error
