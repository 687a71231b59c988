"""Records anew what the tests of this folder compare with: after a change that is meant to change behaviour.

    OMP_NUM_THREADS=1 python -m tests.golden.record [fingerprints]

With the word `fingerprints` it leaves weights.json as it is. Exact digests count where `machine` is the same as the one
that recorded; all others compare norms and losses with a tolerance.
"""

import sys

from tests.golden.freeze import FINGERPRINTS, WEIGHTS, fingerprints, machine, weights, write


def main(words: list[str]) -> None:
    write(FINGERPRINTS, fingerprints())
    if words != ["fingerprints"]:
        write(WEIGHTS, {"machine": machine()} | weights())


if __name__ == "__main__":
    main(sys.argv[1:])
