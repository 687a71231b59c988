"""What ends a sweep below its cells: a row for each method and label budget with the mean over seeds, and what follows.

A method is a rule and a way of fine-tuning, and every other key that the sweep gives several values.
"""

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape

from fasthebb_cli.console.formats import backward_passes, clock, labels, points
from fasthebb_cli.console.spent import backward_passes_of, seconds_of
from fasthebb_cli.console.tables import plain_table
from fasthebb_cli.console.view import BACKWARD
from fasthebb_cli.report.chains import NOT_HEBBIAN, RANDOM, SCRATCH

Cell = dict[str, Any]  # overrides; code: exit code; error: message, if it failed; rows: one for each stage
BUDGET_KEYS = ("seed", "label_fraction", "labels_per_class")  # they tell no method apart
# groups whose keys may differ between methods; experiments are compared where they have the same images and network
METHOD_KEYS = ("experiment", "rule", "pretrain", "finetune", "extra", "stages")
NAMED_BY = ("finetune", "experiment")  # they stand in a method's name only where others have the same name


@dataclass(frozen=True)
class Group:
    """Cells that differ in their seed only.

    Args:
        values: swept key -> its value.
        subject: images and network, as directories are called by them.
        fine_tuning: as methods are called by it; empty: without.
        top1: by seed, in [0, 1].
        passes: mean number of images that went through a backward pass; None: unknown.
        seconds: mean over cells.
    """

    values: Mapping[str, str]
    subject: str
    rule: str
    fine_tuning: str
    labels: str
    top1: dict[int, float]
    passes: float | None
    seconds: float

    @property
    def mean(self) -> float:
        return statistics.fmean(self.top1.values())

    @property
    def rule_name(self) -> str:
        """As the command line names the rule: several of its choices may be one rule with other options."""
        return self.values.get("rule", self.rule).split(":")[-1]

    @property
    def place(self) -> dict[str, str]:
        """What must be the same in methods that are compared: label budget, images, network and so on."""
        place = {key: value for key, value in self.values.items() if re.split("[.@]", key)[0] not in METHOD_KEYS}
        return place | ({"experiment": self.subject} if "experiment" in self.values else {})


class Name(NamedTuple):
    """What a group is called. more: key=value of the swept keys that rule and fine-tuning don't tell."""

    rule: str
    fine_tuning: str
    more: list[str]

    @property
    def in_table(self) -> str:
        return ", ".join(part for part in (self.rule, self.fine_tuning, *self.more) if part)

    @property
    def in_text(self) -> str:
        way = f" with {self.fine_tuning}" if self.fine_tuning else ""
        return self.rule + way + (f" ({', '.join(self.more)})" if self.more else "")


def print_summary(console: Console, cells: Sequence[Cell], keys: Sequence[str]) -> None:
    """Prints the table if cells have several seeds, and the conclusions if there are any.

    Args:
        keys: the swept ones.
    """
    groups = groups_of(cells, keys)
    if "seed" in keys and groups:
        table = plain_table()
        table.add_column("method", overflow="fold")
        for head in ("labels", "top-1 %\nmean (sd)", "seeds", BACKWARD, "time"):
            table.add_column(head, justify="right", no_wrap=True)
        for group, name in zip(groups, names_of(groups), strict=True):
            table.add_row(
                escape(name.in_table), group.labels, _mean_text(group), str(len(group.top1)),
                backward_passes(group.passes), clock(group.seconds),
            )  # fmt: skip
        console.print()
        console.print(table)
    for number, line in enumerate(conclusions(groups)):
        console.print("" if number else "\n", end="")
        console.print(escape(line), highlight=False)


def groups_of(cells: Sequence[Cell], keys: Sequence[str]) -> list[Group]:
    """The cells that have an accuracy, grouped by the values of all swept keys but the seed."""
    gathered: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        if cell["code"] == 0 and measured(cell)["top1"] is not None:
            chosen = tuple(value_of(cell, key) for key in keys if key != "seed")
            gathered.setdefault(chosen, []).append(cell)
    return [_group(dict(zip([key for key in keys if key != "seed"], chosen, strict=True)), found)
            for chosen, found in gathered.items()]  # fmt: skip


def names_of(groups: Sequence[Group]) -> list[Name]:
    """The groups' names, which differ wherever the groups do in more than label budget."""
    told = [
        [f"{key}={value}" for key, value in group.values.items() if key not in (*BUDGET_KEYS, "rule", *NAMED_BY)]
        for group in groups
    ]
    named = [Name(group.rule_name, group.fine_tuning, more) for group, more in zip(groups, told, strict=True)]
    alike = Counter((name.in_table, group.labels) for name, group in zip(named, groups, strict=True))
    return [
        name._replace(more=[*(f"{key}={group.values[key]}" for key in NAMED_BY if key in group.values), *name.more])
        if alike[name.in_table, group.labels] > 1 else name
        for name, group in zip(named, groups, strict=True)
    ]  # fmt: skip


def conclusions(groups: Sequence[Group]) -> list[str]:
    """A sentence for each label budget: what the best method without a backward pass gains over training from scratch,
    and how much the learning of filters adds to random ones. If all methods make backward passes, it is about the best.
    """
    found: dict[str, list[tuple[Group, Name]]] = {}
    for group, name in zip(groups, names_of(groups), strict=True):
        own = [item for item in name.more if item.partition("=")[0] not in group.place]
        found.setdefault(repr(sorted(group.place.items())), []).append((group, name._replace(more=own)))
    return [line for here in found.values() if (line := _conclusion(here))]


def _conclusion(here: Sequence[tuple[Group, Name]]) -> str:
    """The sentence on groups that can be compared; empty where there is nothing to compare with."""
    hebbian = [item for item in here if item[0].rule not in NOT_HEBBIAN]
    best = _best([item for item in hebbian if item[0].passes == 0]) or _best(hebbian)
    if best is None:
        return ""
    group, name = best
    scratch = _best([item for item in here if item[0].rule == SCRATCH and item[0].passes != 0])
    random = _best([item for item in here if item[0].rule == RANDOM and item[0].fine_tuning == group.fine_tuning])
    lead = "Without a backward pass, " if group.passes == 0 else ""
    others = [f"{key}={value}" for key, value in group.place.items()
              if key not in (*BUDGET_KEYS, "experiment")]  # fmt: skip
    where = " and ".join([f"{group.labels} labels", *others])
    gain, adds = _difference(group, scratch), ""
    added = _difference(group, random)
    if random is not None and added is not None:
        adds = f"learning the filters adds {points(added[0])} points (against {random[1].in_text}, n = {added[1]})"
    if scratch is None or gain is None:
        return f"With {name.in_text} at {where}, {adds}." if adds else ""
    text = f"{lead}{name.in_text} is {_standing(gain[0])} {scratch[1].in_text} at {where} (n = {gain[1]})"
    if adds and _standing(gain[0]).endswith("above"):
        adds = f"of these, {adds}"
    return f"{text}; {adds}." if adds else f"{text}."


def _standing(difference: float) -> str:
    size = f"{abs(100 * difference):.1f}"
    if float(size) == 0:
        return "level with"
    return f"{size} points {'above' if difference > 0 else 'below'}"


def _best(items: Sequence[tuple[Group, Name]]) -> tuple[Group, Name] | None:
    """The highest mean among those with the most seeds: one lucky seed does not beat the mean of five."""
    most = max((len(group.top1) for group, _ in items), default=0)
    return max((item for item in items if len(item[0].top1) == most), key=lambda item: item[0].mean, default=None)


def _difference(group: Group, other: tuple[Group, Name] | None) -> tuple[float, int] | None:
    """The mean difference over the seeds that both have, and their number."""
    theirs = other[0].top1 if other else {}
    differences = [value - theirs[seed] for seed, value in group.top1.items() if seed in theirs]
    return (statistics.fmean(differences), len(differences)) if differences else None


def _group(values: dict[str, str], cells: Sequence[Cell]) -> Group:
    rows = [measured(cell) for cell in cells]
    passes = [backward_passes_of(cell["rows"]) for cell in cells]
    known = [count for count in passes if count is not None]
    ways = [row["fine_tuning"] for row in cells[0]["rows"] if row["fine_tuning"]]
    return Group(
        values=values,
        subject=_subject(rows[0]),
        rule=rows[0]["rule"],
        fine_tuning=ways[-1] if ways else "",
        labels=statistics.mode(labels(row) for row in rows),
        top1={row["seed"]: row["top1"] for row in rows},
        passes=statistics.fmean(known) if len(known) == len(passes) else None,
        seconds=statistics.fmean(seconds_of(cell["rows"]) for cell in cells),
    )


def _subject(row: Mapping[str, Any]) -> str:
    """The part of the directory's name before the rule: data set, network and width."""
    return Path(row["directory"]).name.partition(f"-{row['rule']}-")[0]


def _mean_text(group: Group) -> str:
    values = [100 * value for value in group.top1.values()]
    deviation = f"{statistics.stdev(values):.1f}" if len(values) > 1 else "–"
    return f"{statistics.fmean(values):.1f} ({deviation})"


def measured(cell: Cell) -> dict[str, Any]:
    """The row of the last stage that has an accuracy; if none has one, the last row."""
    rows: list[dict[str, Any]] = cell["rows"]
    return next((row for row in reversed(rows) if row["top1"] is not None), rows[-1])


def value_of(cell: Cell, key: str) -> str:
    """The value as the user means it: without the quotes and backslashes of Hydra's grammar."""
    text = next((item.split("=", 1)[1] for item in cell["overrides"] if key_of(item) == key), "")
    inner = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    return re.sub(r"\\(.)", r"\1", inner)


def key_of(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")
