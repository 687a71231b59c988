"""How a job asks to be started again; tests/slurm/ does it with a real SLURM."""

import signal
import subprocess
from collections.abc import Iterator

import pytest

from fasthebb_cli.compute import signals


@pytest.fixture
def asks() -> Iterator[list[str]]:
    """Stands in for submitit's handler: runs these commands, as that runs scontrol."""
    commands: list[str] = []

    def handler(*_: object) -> None:
        subprocess.check_call(["bash", "-c", commands[0]])

    handler.__module__ = "submitit.core.job_environment"
    before = signal.signal(signal.SIGUSR2, handler)
    yield commands
    signal.signal(signal.SIGUSR2, before)


def test_the_request_for_another_start_outlives_the_signals_that_it_causes(asks: list[str]) -> None:
    asks.append("kill -TERM $$; kill -USR1 $$")
    signals.requeue()


def test_a_request_that_slurm_refuses_waits_for_its_own_requeue_before_it_fails(
    asks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr(signals, "_is_cancelled", lambda: False)
    asks.append("exit 1")
    with pytest.raises(subprocess.CalledProcessError):
        signals.requeue()
    assert waited == []
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    with pytest.raises(subprocess.CalledProcessError):
        signals.requeue()
    assert waited == [signals.REQUEUED]
