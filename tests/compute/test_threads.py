"""How long threads spin is set before torch is loaded, unless the user has set it."""

import subprocess
import sys

import pytest

from fasthebb_cli.compute.threads import SPINS, spin_briefly


def test_threads_spin_briefly() -> None:
    environment: dict[str, str] = {}
    spin_briefly(environment)
    assert environment == {"GOMP_SPINCOUNT": SPINS}


@pytest.mark.parametrize("given", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_what_the_user_has_set_stays(given: dict[str, str]) -> None:
    environment = dict(given)
    spin_briefly(environment)
    assert environment == given


def test_the_command_sets_it_before_torch_is_loaded() -> None:
    code = (
        "import os, sys; os.environ.pop('GOMP_SPINCOUNT', None); sys.argv = ['fasthebb', '--version']\n"
        "from fasthebb_cli import cli\n"
        "try:\n    cli.main()\n"
        "finally:\n    sys.exit(2 * ('torch' in sys.modules) + ('GOMP_SPINCOUNT' not in os.environ))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
