"""Means over seeds with what they are worth: Student's t for 95 % intervals, and the paired t test between methods.

mean ± t(0.975, n - 1) s / √n            t = d̄ / (s_d / √n), two-sided, over the seeds that both methods have
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student

LEVEL = 0.95
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds; `half_width` of its 95 % interval and `deviation` are None for one seed."""

    mean: float
    half_width: float | None
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A method's mean difference to another over the n seeds that both have.

    `p` is of the paired t test, two-sided; None where it can't be had: one seed, or differences that are all equal.
    """

    mean: float
    p: float | None
    n: int

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT


def estimate(values: Sequence[float]) -> Estimate:
    """Of at least one value."""
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Estimate(mean, None, None, 1)
    deviation = statistics.stdev(values)
    return Estimate(mean, float(student.ppf((1 + LEVEL) / 2, n - 1)) * deviation / math.sqrt(n), deviation, n)


def paired_difference(values: Mapping[int, float], others: Mapping[int, float]) -> Difference | None:
    """Values minus others, both by seed; None if they have no seed in common."""
    differences = [values[seed] - others[seed] for seed in values if seed in others]
    if not differences:
        return None
    n, mean = len(differences), statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(n) if n > 1 else 0.0
    if error < 1e-12:  # rounding alone: no spread to compare with
        return Difference(mean, None, n)
    return Difference(mean, 2 * float(student.sf(abs(mean / error), n - 1)), n)
