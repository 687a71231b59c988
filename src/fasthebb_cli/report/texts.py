"""The numbers of a report as text. Per cents have one decimal, differences are in points, n is the number of seeds."""

from fasthebb_cli.console import formats
from fasthebb_cli.report.estimates import Difference, Estimate


def budget_text(fraction: float, labels: int | None) -> str:
    """A label budget: 1 % (30 labels)."""
    return percent_label(fraction) + (f" ({labels:,} labels)" if labels else "")


def percent_label(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def mean_text(value: Estimate) -> str:
    """78.2 ± 1.3; without ± for one seed."""
    spread = f" ± {100 * value.half_width:.1f}" if value.half_width is not None else ""
    return f"{100 * value.mean:.1f}{spread}"


def points(difference: Difference) -> str:
    return formats.points(difference.mean)


def p_text(difference: Difference) -> str:
    if difference.p is None:
        return "p –"
    if difference.p < 0.001:
        return "p < 0.001"
    return f"p = {difference.p:.3f}" if difference.p < 0.1 else f"p = {difference.p:.2f}"


def significance(difference: Difference) -> str:
    if difference.p is None:
        return "one seed allows no test" if difference.n == 1 else "all differences are equal, so there is no test"
    word = "significant" if difference.significant else "not significant"
    return f"{word} (paired t test, {p_text(difference)})"


def seeds_text(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} common seeds"
