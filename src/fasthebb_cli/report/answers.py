"""Two questions on top-1, each with an answer per label budget and one sentence over all of them.

Does Hebbian pre-training pay? The best Hebbian method against the best one that is trained from scratch. These may be
fine-tuned in different ways. Does the learning of filters pay? Against random filters with the same fine-tuning.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fasthebb_cli.report.chains import NOT_HEBBIAN, WAY
from fasthebb_cli.report.estimates import paired_difference
from fasthebb_cli.report.grid import Grid, Method
from fasthebb_cli.report.texts import budget_text, mean_text, p_text, points, seeds_text, significance


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


def _learnt_with_a_control(grid: Grid, fraction: float, way: Any) -> Callable[[Method], bool]:
    """Whether a method is Hebbian, fine-tuned in this way, and has random filters to compare with."""
    return lambda method: (
        is_hebbian(method) and method.settings.get(WAY) == way and grid.control(method, fraction) is not None
    )


def answers_on_learning(grid: Grid) -> list[Answer]:
    """Per label fraction and way of fine-tuning: the best Hebbian method that has a control, against this control."""
    found = []
    for fraction in grid.fractions:
        for way in dict.fromkeys(method.settings.get(WAY) for method in grid.methods):
            best = grid.best(fraction, "top1", _learnt_with_a_control(grid, fraction, way))
            if best is not None and (answer := _answer_on_learning(grid, fraction, best)) is not None:
                found.append(answer)
    return found


def verdict_on_learning(found: Sequence[Answer]) -> str:
    """All the answers on learning in one sentence; empty if there is none."""
    found = [answer for answer in found if answer.verdict != "untold"]
    if not found:
        return ""
    words = {"yes": "significantly better", "no": "significantly worse", "open": "not shown to differ"}
    count = {kind: sum(answer.verdict == kind for answer in found) for kind in words}
    if count["open"] == len(found):
        return "Learnt filters are not shown to differ from random ones, in either direction."
    parts = [f"{word} in {count[kind]}" for kind, word in words.items() if count[kind]]
    of = f"{len(found)} comparisons" if len(found) > 1 else "1 comparison"
    return f"Of {of} with random filters, learnt filters are {', '.join(parts)}."


def _answer_on_learning(grid: Grid, fraction: float, method: Method) -> Answer | None:
    """None where method and control have no seed in common."""
    control = grid.control(method, fraction)
    assert control is not None  # the caller has chosen such a method
    difference = paired_difference(method.values(fraction, "top1"), control.values(fraction, "top1"))
    if difference is None:
        return None
    where = budget_text(fraction, grid.labels(fraction))
    test = f"{p_text(difference)}, n = {difference.n}" if difference.p is not None else f"no test, n = {difference.n}"
    text = f"{where}: {method.spoken} against {control.spoken}: "
    text += f"learning of filters adds {points(difference)} points ({test})."
    if difference.significant:
        return Answer("yes" if difference.mean > 0 else "no", text)
    return Answer("untold" if difference.n == 1 else "open", text)


def is_hebbian(method: Method) -> bool:
    return method.rule not in NOT_HEBBIAN


def _answer(grid: Grid, fraction: float) -> Answer | None:
    """None where neither a Hebbian method nor training from scratch was measured."""
    learnt, scratch = grid.best(fraction, "top1", is_hebbian), grid.best(fraction, "top1", grid.is_scratch)
    where = budget_text(fraction, grid.labels(fraction))
    if learnt is None or scratch is None:
        best = learnt or scratch
        value = best.estimate(fraction, "top1") if best else None
        if best is None or value is None:
            return None
        lacking = "without" if scratch is None else "with"
        text = (
            f"{best.spoken} is best at {mean_text(value)} %; no run {lacking} Hebbian pre-training to compare it with."
        )
        return Answer("untold", f"{where}: {text}")
    difference = grid.difference(learnt, fraction, "top1")
    text = f"{where}: {_standing(grid, fraction, learnt, is_hebbian, 'has ')}, "
    text += _standing(grid, fraction, scratch, grid.is_scratch)
    if difference is None:
        return Answer("untold", f"{text}; they have no seed in common.")
    text += f": {points(difference)} points over {seeds_text(difference.n)}, {significance(difference)}."
    if learnt.settings.get(WAY) != scratch.settings.get(WAY):
        text += " They differ in fine-tuning, too."
    if difference.significant:
        return Answer("yes" if difference.mean > 0 else "no", text)
    return Answer("untold" if difference.n == 1 else "open", text)


def _standing(grid: Grid, fraction: float, method: Method, accept: Callable[[Method], bool], has: str = "") -> str:
    """hpca (best of 3) has 78.2 ± 1.3 %."""
    value = method.estimate(fraction, "top1")
    assert value is not None  # `Grid.best` chose it by its mean
    count = len(grid.rivals(fraction, "top1", accept))
    return f"{method.spoken}{f' (best of {count})' if count > 1 else ''} {has}{mean_text(value)} %"
