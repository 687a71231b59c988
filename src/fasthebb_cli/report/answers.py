"""Does Hebbian pre-training pay? One answer per label budget, on top-1, and one sentence over all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fasthebb_cli.report.chains import SCRATCH
from fasthebb_cli.report.grid import Grid, Method
from fasthebb_cli.report.texts import budget_text, mean_text, points, seeds_text, significance

NOT_HEBBIAN = (SCRATCH, "vae")  # the second learns without labels too, but by backprop


@dataclass(frozen=True)
class Answer:
    """The answer at one label fraction.

    Args:
        verdict: yes, no, open, or untold where nothing can be compared.
    """

    verdict: str
    text: str


def answers(grid: Grid) -> list[Answer]:
    """One per label fraction: the best Hebbian method against the best method without pre-training."""
    found = (_answer(grid, fraction) for fraction in grid.fractions)
    return [answer for answer in found if answer is not None]


def verdict(found: Sequence[Answer]) -> str:
    """All the answers in one sentence."""
    found = [answer for answer in found if answer.verdict != "untold"]
    if not found:
        return (
            "These runs give no answer: it needs runs with and without Hebbian pre-training, on two seeds or more each."
        )
    count = {kind: sum(answer.verdict == kind for answer in found) for kind in ("yes", "no", "open")}
    if count["open"] == len(found):
        return "The runs show no significant difference between Hebbian pre-training and none, either way."
    parts = []
    if count["yes"]:
        parts.append(f"Hebbian pre-training is significantly better at {count['yes']}")
    if count["no"]:
        parts.append(f"significantly worse at {count['no']}")
    if count["open"]:
        parts.append(f"not shown to differ at {count['open']}")
    if not count["yes"]:
        parts[0] = f"Hebbian pre-training is {parts[0]}"
    return f"Of {len(found)} label budgets, {', '.join(parts)}."


def is_hebbian(method: Method) -> bool:
    return method.rule not in NOT_HEBBIAN


def is_scratch(method: Method) -> bool:
    return method.rule == SCRATCH


def _answer(grid: Grid, fraction: float) -> Answer | None:
    """None where neither a Hebbian method nor training from scratch was measured."""
    learnt, scratch = grid.best(fraction, "top1", is_hebbian), grid.best(fraction, "top1", is_scratch)
    where = budget_text(fraction, grid.labels(fraction))
    if learnt is None or scratch is None:
        best = learnt or scratch
        value = best.estimate(fraction, "top1") if best else None
        if best is None or value is None:
            return None
        lacking = "without" if scratch is None else "with"
        text = (
            f"{best.name} is best with {mean_text(value)} %; no run {lacking} Hebbian pre-training to compare it with."
        )
        return Answer("untold", f"{where}: {text}")
    difference = grid.difference(learnt, fraction, "top1")
    text = f"{where}: {_standing(grid, fraction, learnt, is_hebbian, 'has ')}, "
    text += _standing(grid, fraction, scratch, is_scratch)
    if difference is None:
        return Answer("untold", f"{text}; they have no seed in common.")
    text += f": {points(difference)} points over {seeds_text(difference.n)}, {significance(difference)}."
    if difference.significant:
        return Answer("yes" if difference.mean > 0 else "no", text)
    return Answer("untold" if difference.n == 1 else "open", text)


def _standing(grid: Grid, fraction: float, method: Method, accept: Callable[[Method], bool], has: str = "") -> str:
    """hpca (best of 3) has 78.2 ± 1.3 %."""
    value = method.estimate(fraction, "top1")
    assert value is not None  # `Grid.best` chose it by its mean
    count = len(grid.rivals(fraction, "top1", accept))
    return f"{method.name}{f' (best of {count})' if count > 1 else ''} {has}{mean_text(value)} %"
