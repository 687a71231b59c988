"""Label propagation over a graph of all images, labelled or not. N images, L labelled ones, C classes.

    W_ij = cosine of i and j if one is among the other's nearest neighbours, else 0
    (I - reach D^-1/2 W D^-1/2) F = Y,    column c of Y is 1 / (number of labels of c) at the images labelled c

Source: Zhou, Bousquet, Lal, Weston and Schölkopf 2004, "Learning with local and global consistency".
"""

import torch
from torch import Tensor

BLOCK = 1024  # rows of the similarities that are in memory at once
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


def propagated(from_each_NL: Tensor, labels_L: Tensor, classes: int) -> Tensor:
    """Scores F (N, C) of all images: by class the mean of what spreads from its labelled images."""
    membership_LC = torch.nn.functional.one_hot(labels_L, classes).to(from_each_NL)
    return from_each_NL @ (membership_LC / membership_LC.sum(0).clamp_min(1))


def left_out_scores(between_LL: Tensor, labels_L: Tensor, classes: int) -> Tensor:
    """The same (L, C) for each labelled image, without its own label.

    Args:
        between_LL: what spreads to labelled image i from labelled image j.
    """
    membership_LC = torch.nn.functional.one_hot(labels_L, classes).to(between_LL)
    others = between_LL.clone().fill_diagonal_(0) @ membership_LC
    counts_LC = membership_LC.sum(0) - membership_LC
    return others / counts_LC.clamp_min(1)
