"""A teacher signal: labels say which units may learn from a patch, under any rule.

Shapes as in responses.py: y_NGK, units along dimension UNITS. Knows no rule by name.
"""

from dataclasses import replace

import torch
from torch import Tensor

from fasthebb.responses import Moments
from fasthebb.rules import OUT, Rule, Terms


def taught(rule: Rule, y_NGK: Tensor, teacher_NGK: Tensor, *running: Moments, **options: object) -> Terms:
    """Any rule under a teacher signal T of 0 and 1: it multiplies gate, recombination and competing scores.

    A unit of another class is out of the competition: r = T exp(y / t) / sum_k T exp(y / t) in soft winner-takes-all.
    So it has no share either.
    Source: the authors' public code (`_dts`). T is 1 for the units that learn freely and one-hot for those that are
    assigned to a class.
    """
    terms = rule(torch.where(teacher_NGK > 0, y_NGK, OUT), *running, **options)
    recombination = None if terms.recombination is None else terms.recombination * teacher_NGK
    return replace(terms, gate=terms.gate * teacher_NGK, recombination=recombination)


def teacher_signal(labels_N: Tensor, classes: int, units: int, *, groups: int = 1, assigned: int) -> Tensor:
    """T, (N, G, K): 1 for the first K - m C units, then m units for each class, in turn, of which the right ones.

    Args:
        labels_N: class of each patch's sample; below 0 for none, which lets every unit learn.
        classes: C.
        units: K of a group.
        assigned: units of a group to share out at most; m = assigned // C.
    """
    repeats = min(assigned, units) // classes
    one_hot_NC = (labels_N.unsqueeze(1) == torch.arange(classes, device=labels_N.device)) | (labels_N < 0).unsqueeze(1)
    assigned_NK = one_hot_NC.repeat(1, repeats)
    free_NK = one_hot_NC.new_ones(len(labels_N), units - assigned_NK.shape[1])
    teacher_NK = torch.cat([free_NK, assigned_NK], dim=1)
    return teacher_NK.float().unsqueeze(1).expand(-1, groups, -1)
