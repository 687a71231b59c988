"""How torch's threads wait for each other. No torch here: OpenMP reads the variables when torch is loaded.

Each piece of work that threads share ends when the last of them arrives, and the others spin until then. While another
process has one of the cores, the last one isn't even running, and whole time slices are lost: with one busy process
beside it on two cores, a step took 15 times as long. So threads spin for some 50 microseconds, which spans what lies
between two pieces of a step, and then sleep. The numbers are the same.
"""

import os
from collections.abc import MutableMapping

SPINS = "1000"
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # what a user has set stays


def spin_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """To be called before torch is loaded."""
    if not any(name in environment for name in VARIABLES):
        environment["GOMP_SPINCOUNT"] = SPINS
