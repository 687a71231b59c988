"""Label propagation over a graph of all images, labelled or not. N images, L labelled ones in G groups, C classes.

    W_ij = cosine of i and j if one is among the other's nearest neighbours, else 0
    (I - reach D^-1/2 W D^-1/2) F = Y,    column c of Y is 1 / (number of labels of c) at the images labelled c

Source: Zhou, Bousquet, Lal, Weston and Schölkopf 2004, "Learning with local and global consistency".
"""

import torch
from torch import Tensor

BLOCK = 1024  # rows of the similarities that are in memory at once
GROUPS = 10  # of the labelled images of a class, where there are many
TOLERANCE, ROUNDS = 1e-6, 300  # of conjugate gradients


def neighbour_graph(rows_NK: Tensor, neighbours: int) -> Tensor:
    """The normalised graph D^-1/2 W D^-1/2 as a sparse (N, N) tensor of float32.

    Args:
        rows_NK: of length 1.
    """
    count = len(rows_NK)
    neighbours = min(neighbours, count - 1)
    heads, values = [], []
    for start in range(0, count, BLOCK):
        similar = rows_NK[start : start + BLOCK] @ rows_NK.T
        similar[torch.arange(len(similar)), torch.arange(start, start + len(similar))] = -2
        best = similar.topk(neighbours, dim=1)
        heads.append(best.indices)
        values.append(best.values.clamp_min(0))
    tails = torch.arange(count).repeat_interleave(neighbours)
    head, value = torch.cat(heads).flatten(), torch.cat(values).flatten()
    both = torch.stack([torch.cat([tails, head]), torch.cat([head, tails])])
    graph = torch.sparse_coo_tensor(
        both, torch.cat([value, value]) / 2, (count, count), check_invariants=True
    ).coalesce()
    row, column = graph.indices()
    degree = torch.zeros(count).index_add_(0, row, graph.values()).clamp_min(1e-12).rsqrt()
    weights = graph.values() * degree[row] * degree[column]
    return torch.sparse_coo_tensor(graph.indices(), weights, (count, count), is_coalesced=True, check_invariants=True)


def spread(graph: Tensor, sources_NX: Tensor, reach: float) -> Tensor:
    """(I - reach x graph)^-1 sources, (N, X), by conjugate gradients on all columns at once."""
    x = torch.zeros_like(sources_NX)
    residual = sources_NX.clone()
    direction = residual.clone()
    energy = residual.square().sum(0)
    goal = TOLERANCE**2 * energy
    for _ in range(ROUNDS):
        if bool((energy <= goal).all()):
            break
        image = direction - reach * (graph @ direction)
        step = energy / (direction * image).sum(0).clamp_min(1e-30)
        x += step * direction
        residual -= step * image
        before, energy = energy, residual.square().sum(0)
        direction = residual + (energy / before.clamp_min(1e-30)) * direction
    return x


def groups(labels_L: Tensor, classes: int) -> Tensor:
    """Which labelled images spread together, (L,): a group is of one class, and is left out as a whole.

    Few labels: each image is a group. Many: each class has `GROUPS`, so that the work does not grow with the labels.
    """
    if len(labels_L) <= GROUPS * classes:
        return torch.arange(len(labels_L))
    place_L = torch.zeros_like(labels_L)  # of each image among those of its class
    for label in labels_L.unique():
        here = labels_L == label
        place_L[here] = torch.arange(int(here.sum()))
    group_L: Tensor = torch.unique(labels_L * GROUPS + place_L % GROUPS, return_inverse=True)[1]
    return group_L


def sources(size: int, positions_L: Tensor, group_L: Tensor) -> Tensor:
    """(size, G): column g is 1 at the positions of the images of group g, else 0."""
    columns = torch.zeros(size, int(group_L.max()) + 1)
    columns[positions_L, group_L] = 1
    return columns


def propagated(from_groups_NG: Tensor, labels_L: Tensor, group_L: Tensor, classes: int) -> Tensor:
    """Scores F (N, C) of all images: by class the mean of what spreads from its labelled images."""
    members_GC, size_G = _members(labels_L, group_L, classes)
    return from_groups_NG @ members_GC / (size_G @ members_GC).clamp_min(1)


def left_out_scores(between_LG: Tensor, labels_L: Tensor, group_L: Tensor, classes: int) -> Tensor:
    """The same (L, C) for each labelled image, without the labels of its own group.

    Args:
        between_LG: what spreads to labelled image i from group g.
    """
    members_GC, size_G = _members(labels_L, group_L, classes)
    others_LG = between_LG.clone()
    others_LG[torch.arange(len(labels_L)), group_L] = 0
    own_LC = size_G[group_L, None] * torch.nn.functional.one_hot(labels_L, classes)
    return others_LG @ members_GC / (size_G @ members_GC - own_LC).clamp_min(1)


def _members(labels_L: Tensor, group_L: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The class of each group as a row of 0 and 1 (G, C), and its number of images (G,), as floats."""
    size_G = torch.bincount(group_L).float()
    members_GC = torch.zeros(len(size_G), classes)
    members_GC[group_L, labels_L] = 1
    return members_GC, size_G
