"""The oracle: every rule as its paper writes it, one sample, one position, one unit after the other.

It shares nothing with the engine: patches are cut out by loops, responses are formulas on one patch and one weight
vector, updates are sums of one term a patch. Slow and plain on purpose; use it in float64.

Shapes: P patches, K units, D inputs of a unit. A group of a convolution is a layer of its own beside the others.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv2d


def update(layer: Layer, x: Tensor, rule: str, **options: float | str) -> Tensor:
    """dW of a layer (shape of its weight) for the inputs x it was called with."""
    x, weight = x.detach(), layer.weight.detach()
    if isinstance(layer, nn.Linear):
        return UPDATES[rule](list(x.reshape(-1, layer.in_features)), weight, **options)
    units = layer.out_channels // layer.groups
    channels = layer.in_channels // layer.groups
    parts = []
    for group in range(layer.groups):
        own_x = x[:, group * channels : (group + 1) * channels]
        own_w_KD = weight[group * units : (group + 1) * units].reshape(units, -1)
        parts.append(UPDATES[rule](list(patches(layer, own_x)), own_w_KD, **options))
    return torch.cat(parts).reshape(weight.shape)


def patches(layer: nn.Conv2d, x: Tensor) -> Iterator[Tensor]:
    """Every patch (D,) that a convolution sees of x (B, channels of one group, H, W), in the order of its output."""
    before, after = _padding(layer)
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    first = [range(0, x.shape[2 + i] + before[i] + after[i] - dilation[i] * (kernel[i] - 1), stride[i]) for i in (0, 1)]
    for image in x:
        for top in first[0]:
            for left in first[1]:
                pixels = [
                    _pixel(
                        image, top + i * dilation[0] - before[0], left + j * dilation[1] - before[1], layer.padding_mode
                    )
                    for i in range(kernel[0])
                    for j in range(kernel[1])
                ]
                yield torch.stack(pixels, dim=1).flatten()


def _padding(layer: nn.Conv2d) -> tuple[list[int], list[int]]:
    """Padding before and after, per axis; an odd total of "same" has its extra pixel after."""
    if layer.padding == "valid":
        return [0, 0], [0, 0]
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [t // 2 for t in total], [t - t // 2 for t in total]
    assert not isinstance(layer.padding, str)
    return list(layer.padding), list(layer.padding)


def _pixel(image: Tensor, row: int, column: int, mode: str) -> Tensor:
    """The channels at a position that may lie outside of the image."""
    height, width = image.shape[1:]
    if mode == "zeros":
        inside = 0 <= row < height and 0 <= column < width
        return image[:, row, column] if inside else torch.zeros_like(image[:, 0, 0])
    return image[:, _inside(row, height, mode), _inside(column, width, mode)]


def _inside(index: int, size: int, mode: str) -> int:
    if mode == "circular":
        return index % size
    if mode == "replicate":
        return min(max(index, 0), size - 1)
    assert mode == "reflect"
    return size - 1 - abs(size - 1 - abs(index))


def hpca(x_P: list[Tensor], w_KD: Tensor, denominator: str = "power", damping: float = 0.5) -> Tensor:
    """Lagani et al. 2022: dw_i = y_i (x - sum_{j<=i} y_j w_j), y_i = relu(x.w_i), over the patches."""
    numerator_KD = torch.zeros_like(w_KD)
    power = [0.0] * len(w_KD)
    for x in x_P:
        reconstruction = torch.zeros_like(x)
        for i, w in enumerate(w_KD):
            y = max(0.0, float(x @ w))
            reconstruction = reconstruction + y * w
            numerator_KD[i] += y * (x - reconstruction)
            power[i] += y**2
    if denominator == "patches":
        return numerator_KD / len(x_P)
    mean_power = sum(power) / len(power)
    return torch.stack([_divided(numerator_KD[i], power[i] + damping * mean_power) for i in range(len(w_KD))])


def swta(x_P: list[Tensor], w_KD: Tensor, temperature: float = 0.02) -> Tensor:
    """Lagani et al. 2022: dw_i = r_i (x - w_i), r = softmax of scores; the mean weighs patches by r_i."""
    numerator_KD = torch.zeros_like(w_KD)
    weight_of_patches = [0.0] * len(w_KD)
    for x in x_P:
        scores = [((_cosine(x, w) + 1) / 2) ** 2 for w in w_KD]
        exponentials = [math.exp(score / temperature) for score in scores]
        for i, w in enumerate(w_KD):
            r = exponentials[i] / sum(exponentials)
            step = r * (x - w)
            numerator_KD[i] += r * step
            weight_of_patches[i] += r
    return torch.stack([_divided(numerator_KD[i], weight_of_patches[i]) for i in range(len(w_KD))])


def pswta(x_P: list[Tensor], w_KD: Tensor, power: float = 0.05) -> Tensor:
    """As swta with r = y^(1/p) / sum y^(1/p)."""
    numerator_KD = torch.zeros_like(w_KD)
    weight_of_patches = [0.0] * len(w_KD)
    for x in x_P:
        scores = [((_cosine(x, w) + 1) / 2) ** 2 for w in w_KD]
        best = max(scores)
        powers = [(score / best) ** (1 / power) if best > 0 else 0.0 for score in scores]
        for i, w in enumerate(w_KD):
            r = powers[i] / sum(powers) if best > 0 else 0.0
            numerator_KD[i] += r**2 * (x - w)
            weight_of_patches[i] += r
    return torch.stack([_divided(numerator_KD[i], weight_of_patches[i]) for i in range(len(w_KD))])


def kwta(x_P: list[Tensor], w_KD: Tensor, k: int = 5) -> Tensor:
    """Each unit's mean of x - w over the patches among whose k best units it is; ties with the k-th all win."""
    numerator_KD = torch.zeros_like(w_KD)
    wins = [0] * len(w_KD)
    for x in x_P:
        scores = [((_cosine(x, w) + 1) / 2) ** 2 for w in w_KD]
        least = sorted(scores, reverse=True)[min(k, len(scores)) - 1]
        for i, w in enumerate(w_KD):
            if scores[i] >= least:
                numerator_KD[i] += x - w
                wins[i] += 1
    return torch.stack([_divided(numerator_KD[i], wins[i]) for i in range(len(w_KD))])


def hwta(x_P: list[Tensor], w_KD: Tensor) -> Tensor:
    return kwta(x_P, w_KD, k=1)


def kmeans(x_P: list[Tensor], w_KD: Tensor) -> Tensor:
    """Lloyd: each unit's mean of x - w over the patches that no unit is nearer to; units that are as near all win."""
    numerator_KD = torch.zeros_like(w_KD)
    wins = [0] * len(w_KD)
    for x in x_P:
        distances = [float((x - w) @ (x - w)) for w in w_KD]
        for i, w in enumerate(w_KD):
            if distances[i] == min(distances):
                numerator_KD[i] += x - w
                wins[i] += 1
    return torch.stack([_divided(numerator_KD[i], wins[i]) for i in range(len(w_KD))])


def hpca_tanh(x_P: list[Tensor], w_KD: Tensor, denominator: str = "power", damping: float = 0.5) -> Tensor:
    """hpca with y = tanh(x.w)."""
    return _ordered([[math.tanh(float(x @ w)) for w in w_KD] for x in x_P], x_P, w_KD, denominator, damping)


def hpca_adaptive(x_P: list[Tensor], w_KD: Tensor, denominator: str = "power", damping: float = 0.5) -> Tensor:
    """hpca with y = sigma tanh((s - mu) / sigma + mu), mean and deviation over these patches (a first batch)."""
    y_PK = [[0.0] * len(w_KD) for _ in x_P]
    for i, w in enumerate(w_KD):
        s_P = [float(x @ w) for x in x_P]
        mu = sum(s_P) / len(s_P)
        sigma = max(math.sqrt(sum((s - mu) ** 2 for s in s_P) / len(s_P)), 1e-6)
        for n, s in enumerate(s_P):
            y_PK[n][i] = sigma * math.tanh((s - mu) / sigma + mu)
    return _ordered(y_PK, x_P, w_KD, denominator, damping)


def _ordered(y_PK: list[list[float]], x_P: list[Tensor], w_KD: Tensor, denominator: str, damping: float) -> Tensor:
    numerator_KD = _decorrelated(y_PK, x_P, w_KD)
    if denominator == "patches":
        return numerator_KD / len(x_P)
    power = [sum(y[i] ** 2 for y in y_PK) for i in range(len(w_KD))]
    mean_power = sum(power) / len(power)
    return torch.stack([_divided(numerator_KD[i], power[i] + damping * mean_power) for i in range(len(w_KD))])


def _decorrelated(y_PK: list[list[float]], x_P: list[Tensor], w_KD: Tensor) -> Tensor:
    """sum_n y_i (x - sum_{j<=i} y_j w_j)."""
    numerator_KD = torch.zeros_like(w_KD)
    for y_K, x in zip(y_PK, x_P, strict=True):
        reconstruction = torch.zeros_like(x)
        for i, w in enumerate(w_KD):
            reconstruction = reconstruction + y_K[i] * w
            numerator_KD[i] += y_K[i] * (x - reconstruction)
    return numerator_KD


def gha(x_P: list[Tensor], w_KD: Tensor) -> Tensor:
    """Sanger 1989: dw_i = y_i (x - sum_{j<=i} y_j w_j), y = x.w."""
    return _decorrelated([[float(x @ w) for w in w_KD] for x in x_P], x_P, w_KD) / len(x_P)


def oja(x_P: list[Tensor], w_KD: Tensor) -> Tensor:
    """Oja 1982: dw = y (x - y w), y = x.w."""
    return torch.stack([sum((float(x @ w) * (x - float(x @ w) * w) for x in x_P), 0 * w) / len(x_P) for w in w_KD])


def subspace(x_P: list[Tensor], w_KD: Tensor) -> Tensor:
    """Oja 1989: dw_i = y_i (x - sum_j y_j w_j), y = x.w."""
    update_KD = torch.zeros_like(w_KD)
    for x in x_P:
        reconstruction = sum((float(x @ w) * w for w in w_KD), torch.zeros_like(x))
        for i, w in enumerate(w_KD):
            update_KD[i] += float(x @ w) * (x - reconstruction)
    return update_KD / len(x_P)


def instar(x_P: list[Tensor], w_KD: Tensor) -> Tensor:
    """Grossberg 1976: dw = y (x - w), y = relu(x.w)."""
    return torch.stack([sum((max(0.0, float(x @ w)) * (x - w) for x in x_P), 0 * w) / len(x_P) for w in w_KD])


def hebb(x_P: list[Tensor], w_KD: Tensor) -> Tensor:
    """Hebb 1949: dw = y x, y = x.w."""
    return torch.stack([sum((float(x @ w) * x for x in x_P), 0 * w) / len(x_P) for w in w_KD])


def bcm(x_P: list[Tensor], w_KD: Tensor) -> Tensor:
    """Bienenstock, Cooper, Munro 1982: dw = y (y - theta) x, theta the mean of y^2 over these patches."""
    rows = []
    for w in w_KD:
        y_P = [max(0.0, float(x @ w)) for x in x_P]
        theta = sum(y**2 for y in y_P) / len(y_P)
        rows.append(sum((y * (y - theta) * x for y, x in zip(y_P, x_P, strict=True)), 0 * w) / len(x_P))
    return torch.stack(rows)


def softhebb(x_P: list[Tensor], w_KD: Tensor, temperature: float = 1.0) -> Tensor:
    """Journé et al. 2023: dw_i = y_i (x - u_i w_i), y = softmax(u / T), negated for losers; over the largest |dw|."""
    update_KD = torch.zeros_like(w_KD)
    for x in x_P:
        u = [float(x @ w) for w in w_KD]
        exponentials = [math.exp((value - max(u)) / temperature) for value in u]
        for i, w in enumerate(w_KD):
            y = exponentials[i] / sum(exponentials)
            update_KD[i] += (y if u[i] == max(u) else -y) * (x - u[i] * w)
    return _divided(update_KD, float(update_KD.abs().max()))


def ica(x_P: list[Tensor], w_KD: Tensor, normalised: bool = False) -> Tensor:
    """Amari et al. 1996: dw_i = w_i - mean of tanh(s_i) sum_j s_j w_j, s = x.w; normalised: (V_i.w_i) w_i - V_i."""
    return _independent(x_P, w_KD, normalised, seen=lambda i: range(len(w_KD)))


def hica(x_P: list[Tensor], w_KD: Tensor, normalised: bool = False) -> Tensor:
    """As ica, but the sum is over j <= i."""
    return _independent(x_P, w_KD, normalised, seen=lambda i: range(i + 1))


def _independent(x_P: list[Tensor], w_KD: Tensor, normalised: bool, seen: Callable[[int], range]) -> Tensor:
    rows = []
    for i, w in enumerate(w_KD):
        v = torch.zeros_like(w)
        for x in x_P:
            for j in seen(i):
                v += math.tanh(float(x @ w)) * float(x @ w_KD[j]) * w_KD[j] / len(x_P)
        rows.append(float(v @ w) * w - v if normalised else w - v)
    return torch.stack(rows)


def taught_swta(x_P: list[Tensor], w_KD: Tensor, t_PK: Tensor, temperature: float = 0.02) -> Tensor:
    """Only units with T = 1 compete for a patch: r_i = T_i exp(y_i / t) / sum_k T_k exp(y_k / t)."""
    update_KD, share_K = torch.zeros_like(w_KD), [0.0] * len(w_KD)
    for x, t_K in zip(x_P, t_PK, strict=True):
        scores = [((_cosine(x, w) + 1) / 2) ** 2 for w in w_KD]
        powers = [float(t) * math.exp((y - 1) / temperature) for t, y in zip(t_K, scores, strict=True)]
        for i, w in enumerate(w_KD):
            r = powers[i] / sum(powers) if sum(powers) > 0 else 0.0
            share_K[i] += r
            update_KD[i] += r * r * (x - w)
    return torch.stack([_divided(row, share) for row, share in zip(update_KD, share_K, strict=True)])


def taught_kwta(x_P: list[Tensor], w_KD: Tensor, t_PK: Tensor, k: int = 5) -> Tensor:
    """The k best of the units with T = 1, or all if there are fewer, take the patch."""
    update_KD, share_K = torch.zeros_like(w_KD), [0.0] * len(w_KD)
    for x, t_K in zip(x_P, t_PK, strict=True):
        ranked = sorted((i for i in range(len(w_KD)) if t_K[i] > 0), key=lambda i: -_cosine(x, w_KD[i]))
        for i in ranked[:k]:
            share_K[i] += 1
            update_KD[i] += x - w_KD[i]
    return torch.stack([_divided(row, share) for row, share in zip(update_KD, share_K, strict=True)])


def taught_hpca(x_P: list[Tensor], w_KD: Tensor, t_PK: Tensor) -> Tensor:
    """Units with T = 0 neither learn from the patch nor take anything from it; the divisor is the number of patches."""
    update_KD = torch.zeros_like(w_KD)
    for x, t_K in zip(x_P, t_PK, strict=True):
        y = [float(t) * max(float(x @ w), 0.0) for t, w in zip(t_K, w_KD, strict=True)]
        for i in range(len(w_KD)):
            update_KD[i] += y[i] * (x - sum((y[j] * w_KD[j] for j in range(i + 1)), torch.zeros_like(x)))
    return update_KD / len(x_P)


UPDATES: dict[str, Callable[..., Tensor]] = {
    "hpca": hpca, "hpca_tanh": hpca_tanh, "hpca_adaptive": hpca_adaptive, "oja": oja, "gha": gha,
    "subspace": subspace, "instar": instar, "hebb": hebb, "bcm": bcm, "swta": swta, "pswta": pswta, "hwta": hwta,
    "kwta": kwta, "kmeans": kmeans, "softhebb": softhebb, "ica": ica, "hica": hica,
}  # fmt: skip


def _cosine(x: Tensor, w: Tensor) -> float:
    lengths = float(x.norm()) * float(w.norm())
    return float(x @ w) / lengths if lengths > 0 else 0.0


def _divided(numerator: Tensor, denominator: float) -> Tensor:
    return numerator / denominator if denominator != 0 else torch.zeros_like(numerator)
