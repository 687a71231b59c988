"""Means over seeds and what they are worth: 95 % confidence intervals and the paired t test, by scipy.

mean ± t(0.975, n - 1) s / √n            t = d̄ / (s_d / √n), two-sided, over the seeds that both methods have
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import sem, ttest_rel
from scipy.stats import t as student

LEVEL = 0.95
SIGNIFICANT = 0.05
ROUNDING = 1e-12  # differences of accuracies whose standard error is smaller differ by rounding alone


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds.

    Args:
        half_width: half of the 95 % confidence interval; None for one seed.
        deviation: the standard deviation, with n - 1; None for one seed.
    """

    mean: float
    half_width: float | None
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """The mean difference between two methods over the n seeds that both have.

    Args:
        p: of the paired t test, two-sided; None for one seed, or if all differences are equal.
    """

    mean: float
    p: float | None
    n: int

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT


def estimate(values: Sequence[float]) -> Estimate:
    """The estimate from at least one value."""
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Estimate(mean, None, None, 1)
    deviation = statistics.stdev(values)  # exact, so that equal values have a deviation of 0
    return Estimate(mean, float(student.ppf((1 + LEVEL) / 2, n - 1)) * deviation / math.sqrt(n), deviation, n)


def paired_difference(values: Mapping[int, float], others: Mapping[int, float]) -> Difference | None:
    """Values minus others, both by seed; None if they have no seed in common."""
    seeds = [seed for seed in values if seed in others]
    if not seeds:
        return None
    ours, theirs = [values[seed] for seed in seeds], [others[seed] for seed in seeds]
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, n = statistics.fmean(differences), len(seeds)
    if n == 1 or sem(differences) < ROUNDING:
        return Difference(mean, None, n)
    return Difference(mean, float(ttest_rel(ours, theirs).pvalue), n)
