"""Records anew what the tests of this folder compare with: after a change that is meant to change behaviour.

    OMP_NUM_THREADS=1 python -m tests.golden.record [defaults | fingerprints]

With the word `defaults` it writes defaults.json alone, with `fingerprints` all but weights.json. Exact digests count
where `machine` is the same as the one that recorded; all others compare norms and losses with a tolerance.
"""

import sys

from tests.golden.freeze import (
    DEFAULTS,
    FINGERPRINTS,
    WEIGHTS,
    defaults,
    fingerprints,
    machine,
    read,
    unannounced,
    weights,
    write,
)  # fmt: skip


def main(words: list[str]) -> None:
    if wrong := unannounced(read(DEFAULTS), defaults()):
        sys.exit("\n".join(wrong))
    write(DEFAULTS, defaults())
    if words == ["defaults"]:
        return
    write(FINGERPRINTS, fingerprints())
    if words != ["fingerprints"]:
        write(WEIGHTS, {"machine": machine()} | weights())


if __name__ == "__main__":
    main(sys.argv[1:])
