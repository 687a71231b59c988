"""Says whether this code plans and computes exactly what was recorded, to the last bit; exit code 1 if not.

    OMP_NUM_THREADS=1 python -m tests.golden.compare [fingerprints]

For the machine that recorded: elsewhere the last bits of weights differ, and tests/golden/test_weights.py compares with
a tolerance.
"""

import sys

from tests.golden.freeze import FINGERPRINTS, WEIGHTS, differing, fingerprints, machine, read, weights


def main(words: list[str]) -> int:
    recorded, found = read(FINGERPRINTS), fingerprints()
    if words != ["fingerprints"]:
        recorded |= read(WEIGHTS)
        found |= {"machine": machine()} | weights()
    names = differing(recorded, found)
    equal = len(recorded.keys() | found.keys()) - len(names)
    sys.stdout.write("".join(f"differs: {name}\n" for name in names) + f"{equal} of {equal + len(names)} equal\n")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
