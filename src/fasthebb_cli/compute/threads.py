"""How torch's threads wait for each other. Imports no torch: OpenMP reads the variables when torch is loaded.

A parallel region ends when its last thread is done; the other threads spin until then. If another process uses one of
the cores, the last thread may not even run, and the others spin for whole time slices: on two cores, beside one busy
process, a step took 15 times as long. So threads spin for about 50 microseconds, longer than the pause between two
regions of a step, and then sleep. The numbers are the same.
"""

import os
from collections.abc import MutableMapping

SPINS = "1000"
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # the user's values win


def spin_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets how long threads spin, unless the user has. Call it before torch is loaded."""
    if not any(name in environment for name in VARIABLES):
        environment["GOMP_SPINCOUNT"] = SPINS
