"""A teacher signal: labels say which units may learn from a patch, under any rule.

Each class gets some of a layer's units, which learn only from patches of that class. The other units learn from all.
Shapes as in responses.py: y_NGK, units along dimension UNITS. Knows no rule by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fasthebb.patterns import last_match
from fasthebb.responses import Moments
from fasthebb.rules import OUT, Rule, Terms


@dataclass(frozen=True)
class Teacher:
    """Assigns units to classes in all learning layers, except in the network's first layer.

    Args:
        classes: C, number of classes; labels are in [0, C).
        assigned: pattern of layer names -> how many units of a group are assigned to classes, rounded down to a
            multiple of C; the last match counts. A layer without a match has all its units assigned.
    """

    classes: int
    assigned: Mapping[str, int] = field(default_factory=dict)

    def assigned_units(self, layer: str, units: int) -> int:
        """How many units of a group may be assigned, at most `units`."""
        wanted: int = last_match(layer, self.assigned, units)
        return min(wanted, units)


def taught(rule: Rule, y_NGK: Tensor, teacher_NGK: Tensor, *running: Moments, **options: object) -> Terms:
    """Any rule under a teacher signal T of 0 and 1: T multiplies gate, recombination and competing scores.

    A unit of another class does not compete: r = T exp(y / t) / sum_k T exp(y / t) in soft winner-takes-all.
    So its share is 0 too.
    Source: the authors' public code (`_dts`).

    Args:
        teacher_NGK: T, see `teacher_signal`.
    """
    terms = rule(torch.where(teacher_NGK > 0, y_NGK, OUT), *running, **options)
    recombination = None if terms.recombination is None else terms.recombination * teacher_NGK
    return replace(terms, gate=terms.gate * teacher_NGK, recombination=recombination, total=None)


def teacher_signal(labels_N: Tensor, classes: int, units: int, *, groups: int = 1, assigned: int) -> Tensor:
    """T, (N, G, K): 1 where the unit may learn from the patch, otherwise 0.

    The first K - m C units learn from all patches. Then follow m times C units, one for each class in turn.

    Args:
        labels_N: class of each patch's image; negative: unknown, and then every unit learns.
        classes: C.
        units: K, number of units in a group.
        assigned: how many units of a group may be assigned; m = assigned // C.
    """
    repeats = min(assigned, units) // classes
    one_hot_NC = (labels_N.unsqueeze(1) == torch.arange(classes, device=labels_N.device)) | (labels_N < 0).unsqueeze(1)
    assigned_NK = one_hot_NC.repeat(1, repeats)
    free_NK = one_hot_NC.new_ones(len(labels_N), units - assigned_NK.shape[1])
    teacher_NK = torch.cat([free_NK, assigned_NK], dim=1)
    return teacher_NK.float().unsqueeze(1).expand(-1, groups, -1)
