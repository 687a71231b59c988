"""The engine against the naive loops of tests/reference.py, for all kinds of layers that it accepts."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fasthebb import engine, tiles
from fasthebb.geometry import Layer
from fasthebb.responses import RESPONSES, Moments
from fasthebb.rules import Mask, Terms, hpca
from fasthebb.settings import RULES
from fasthebb.tiles import CPU, GPU, TileSizes
from tests import reference

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch warns that it copies the input

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Options = dict[str, float | str]
RULE_OPTIONS: list[tuple[str, Options]] = [
    ("hpca", {"denominator": "patches"}),
    ("hpca", {"denominator": "power"}),
    ("hpca", {"denominator": "power", "damping": 0.01}),
    ("hpca_tanh", {"denominator": "patches"}),
    ("hpca_tanh", {"damping": 0.1}),
    ("hpca_adaptive", {}),
    ("hpca_adaptive", {"denominator": "patches"}),
    ("oja", {}),
    ("gha", {}),
    ("subspace", {}),
    ("instar", {}),
    ("hebb", {}),
    ("bcm", {}),
    ("swta", {}),
    ("swta", {"temperature": 0.5}),
    ("pswta", {}),
    ("pswta", {"power": 0.5}),
    ("hwta", {}),
    ("kwta", {"k": 2}),
    ("kmeans", {}),
    ("softhebb", {}),
    ("softhebb", {"temperature": 0.3}),
    ("ica", {}),
    ("ica", {"normalised": True}),
    ("hica", {}),
    ("hica", {"normalised": True}),
]


BLOCK = CPU.block
# for a CPU; for a GPU; for a GPU with small tiles, so that there are several; and with memory for one block at a time
TILE_SIZES = [CPU, GPU, replace(GPU, pairs=3, block=4), replace(GPU, block=4, chunk=1)]


@dataclass
class Case:
    layer: Layer
    x: Tensor
    rule: str
    options: Options
    sizes: TileSizes = CPU


def sums(layer: Layer, x: Tensor, rule: str, options: Options, sizes: TileSizes = CPU) -> engine.Sums:
    with torch.no_grad(), mock.patch.object(tiles, "sizes_for", return_value=sizes):
        pre = engine.pre_activation(layer, x, layer(x))
        setting = RULES[rule]
        y_NGK = RESPONSES[setting.response](pre)
        running = [Moments.of(y_NGK)] if setting.running else []
        return engine.sums(layer, x, setting.rule(y_NGK, *running, **options))


def assert_close(found: Tensor, wanted: Tensor, *, tolerance: float = 1e-10, scale: float = 0.0) -> None:
    """The largest error, relative to the largest wanted entry or to `scale`, whichever is larger."""
    assert found.shape == wanted.shape
    error = float((found - wanted).abs().max())
    assert error <= tolerance * max(scale, float(wanted.abs().max()))


def assert_agrees(case: Case) -> None:
    wanted = reference.update(copy.deepcopy(case.layer).double(), case.x.double(), case.rule, **case.options)
    found = sums(case.layer, case.x, case.rule, case.options, case.sizes).gradient_(case.layer.weight).neg()
    assert found.dtype == case.x.dtype
    tolerance = 1e-10
    if case.x.dtype == torch.float32:
        temperature = case.options.get("temperature", 0.02) if case.rule == "swta" else 1.0
        tolerance = max(1e-5, 1e-6 / float(temperature))  # softmax multiplies the rounding of scores by 1 / temperature
    scale = float(case.layer.weight.detach().abs().max()) / 100  # an update of 0 may be the difference of two weights
    assert_close(found.double(), wanted, tolerance=tolerance, scale=scale)


def _case(draw: st.DrawFn, layer: Layer, shape: list[int]) -> Case:
    """Random multiples of 1/8 for the layer's weights and its input; sometimes a sample or a unit is all zero.

    Inner products of such numbers are exact, in float32 too. Otherwise rounding would decide the update of a unit with
    x.w near 0: under "power" it is x / (x.w) for a single patch.
    """
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def eighths(size: Sequence[int], scale: float) -> Tensor:
        return (torch.randn(size, generator=generator, dtype=dtype) * scale * 8).round() / 8

    x = eighths(shape, 1)
    empty = draw(st.sampled_from(["nothing", "nothing", "sample", "all"]))
    if empty == "sample":
        x[0] = 0
    elif empty == "all":
        x.zero_()
    layer = layer.to(dtype)
    with torch.no_grad():
        layer.weight.copy_(eighths(layer.weight.shape, max(0.25, layer.weight[0].numel() ** -0.5)))
        if draw(st.booleans()):
            layer.weight[draw(st.integers(0, len(layer.weight) - 1))] = 0
        if layer.bias is not None:
            layer.bias.copy_(eighths(layer.bias.shape, 1))
    if x.dim() == 4 and draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
        layer = layer.to(memory_format=torch.channels_last)
    rule, options = draw(st.sampled_from(RULE_OPTIONS))
    return Case(layer, x, rule, options, draw(st.sampled_from(TILE_SIZES)))


def _pair(draw: st.DrawFn, low: int, high: int) -> tuple[int, int]:
    return draw(st.integers(low, high)), draw(st.integers(low, high))


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    kernel, dilation = _pair(draw, 1, 3), _pair(draw, 1, 2)
    stride = _pair(draw, 1, 3)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    height, width = (r + draw(st.integers(0, 3)) for r in reach)
    largest = min(2, height - 1, width - 1)  # reflection needs more pixels than padding
    padding: str | tuple[int, int] = draw(st.sampled_from(["valid", "same", "number", "number"]))
    if padding == "number":
        padding = _pair(draw, 0, largest)
    mode: PaddingMode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    if padding == "same":
        stride = (1, 1)
        if mode == "reflect" and any(r // 2 >= size for r, size in zip(reach, (height, width), strict=True)):
            mode = "zeros"
    groups = draw(st.integers(1, 3))
    layer = nn.Conv2d(
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 4)),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    return _case(draw, layer, [draw(st.integers(1, 2)), layer.in_channels, height, width])


@st.composite
def full_map_convolutions(draw: st.DrawFn) -> Case:
    """Without padding there is one patch a sample, so that the layer is a linear one (except with groups)."""
    kernel, groups = _pair(draw, 1, 4), draw(st.sampled_from([1, 1, 2]))
    padding: str | int = draw(st.one_of(st.just("valid"), st.integers(0, 1)))
    layer = nn.Conv2d(
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 5)),
        kernel,
        stride=draw(st.integers(1, 2)),
        padding=padding,
        groups=groups,
        bias=draw(st.booleans()),
    )
    return _case(draw, layer, [draw(st.integers(1, 4)), layer.in_channels, *kernel])


@st.composite
def linears(draw: st.DrawFn) -> Case:
    """Few samples for many units (in blocks, the last one smaller), or many samples for few units (K x K matrix)."""
    if draw(st.booleans()):
        samples, units = draw(st.integers(1, 4)), draw(st.integers(1, 2 * BLOCK + 3))
    else:
        samples, units = draw(st.integers(40, 80)), draw(st.integers(1, 5))
    layer = nn.Linear(draw(st.integers(1, 24)), units, bias=draw(st.booleans()))
    leading = draw(st.sampled_from([[samples], [samples, 1], [1, samples]]))
    return _case(draw, layer, [*leading, layer.in_features])


def test_every_rule_is_compared() -> None:
    assert {rule for rule, _ in RULE_OPTIONS} == set(RULES)


@given(case=convolutions())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_convolution_equals_reference(case: Case) -> None:
    assert_agrees(case)


@given(case=full_map_convolutions())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_full_map_convolution_equals_reference(case: Case) -> None:
    assert_agrees(case)


@given(case=linears())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_linear_equals_reference(case: Case) -> None:
    assert_agrees(case)


@given(case=st.one_of(convolutions(), linears()), cuts=st.lists(st.integers(1, 5), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_micro_batches_add_up_to_the_batch(case: Case, cuts: list[int]) -> None:
    """However the batch is split, one division at the end gives the update of the whole."""
    assume(not RULES[case.rule].running)  # they take each part for a batch
    generator = torch.Generator().manual_seed(len(cuts))
    x = torch.randn(6, *case.x.shape[1:], generator=generator, dtype=torch.float64)
    case.layer.double()
    pieces = list(torch.tensor_split(x, sorted(set(cuts))))
    total = sums(case.layer, pieces[0], case.rule, case.options)
    for piece in pieces[1:]:
        total.add_(sums(case.layer, piece, case.rule, case.options))
    whole = sums(case.layer, x, case.rule, case.options, case.sizes)
    assert len(pieces) > 1
    weight = case.layer.weight.detach()
    assert_close(total.gradient_(weight).neg(), whole.gradient_(weight).neg())


LAYERS: list[tuple[Layer, list[int]]] = [
    (nn.Linear(6, 2 * BLOCK + 7), [5, 6]),
    (nn.Linear(30, 9), [200, 30]),
    (nn.Conv2d(4, 6, 3, padding=1, groups=2), [2, 4, 5, 5]),
    (nn.Conv2d(2, 5, 3), [4, 2, 3, 3]),
    (nn.Conv2d(2, 5, 3, padding=1), [4, 2, 3, 3]),
]


@pytest.mark.parametrize("sizes", TILE_SIZES, ids=["cpu", "gpu", "small", "in turn"])
@pytest.mark.parametrize("mask", ["tril", "diag"])
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=["blocks", "matrix", "groups", "full map", "padded map"])
def test_gate_and_recombination_may_differ(layer: Layer, shape: list[int], mask: Mask, sizes: TileSizes) -> None:
    """G^T X - mask(G^T R) W for any G and R, though in hpca they are the same."""
    torch.manual_seed(0)
    layer, x = copy.deepcopy(layer).double(), torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        dot_NGK = engine.pre_activation(layer, x, layer(x)).dot_NGK
        gate, recombination = torch.randn_like(dot_NGK), torch.randn_like(dot_NGK)
        with mock.patch.object(tiles, "sizes_for", return_value=sizes):
            found = engine.sums(layer, x, Terms(gate, recombination, mask)).numerator
    groups, units = gate.shape[1:]
    wanted = torch.zeros_like(layer.weight).reshape(groups, units, -1)
    w_GKD = layer.weight.detach().reshape(groups, units, -1)
    for group in range(groups):
        x_P = list(x)
        if isinstance(layer, nn.Conv2d):
            x_P = list(reference.patches(layer, x.unflatten(1, (groups, -1))[:, group]))
        g_PK, r_PK = (values[:, group] for values in (gate, recombination))
        for n, patch in enumerate(x_P):
            for i in range(units):
                rebuilt = [r_PK[n, j] * w_GKD[group, j] for j in range(units) if j == i or (mask == "tril" and j < i)]
                wanted[group, i] += g_PK[n, i] * (patch - torch.stack(rebuilt).sum(0))
    assert_close(found, wanted.detach().reshape(found.shape))


@pytest.mark.parametrize(("samples", "units", "blocks"), [(5, 3 * BLOCK, True), (2000, 100, False)])
def test_a_linear_layer_is_computed_in_the_cheaper_form(samples: int, units: int, blocks: bool) -> None:
    """Few samples for many units: in blocks. Many samples for few units: with the K x K matrix."""
    layer, x = nn.Linear(400, units, bias=False), torch.randn(samples, 400)
    shapes = _shapes(layer, x)
    assert ((CPU.parts, CPU.pairs, CPU.pairs) in shapes) is not blocks  # the lower triangle of K x K
    assert ((3, BLOCK, BLOCK) in shapes) is blocks


def test_a_gpu_runs_few_products() -> None:
    """All blocks of a wide layer are one batch of products; so are all pairs of units of a convolution."""
    wide = _shapes(nn.Linear(400, 3 * GPU.block, bias=False), torch.randn(5, 400), GPU)
    assert wide == [(3, GPU.block, GPU.block), (3, GPU.block, 400)]
    short_of_memory = _shapes(nn.Linear(400, 3 * GPU.block, bias=False), torch.randn(5, 400), replace(GPU, chunk=4_000))
    assert short_of_memory == [(3, GPU.block, GPU.block), *[(1, GPU.block, 400)] * 3]  # one block after the other
    assert _shapes(nn.Conv2d(3, 100, 3, bias=False), torch.randn(8, 3, 9, 9), GPU) == [(1, 100, 100), (100, 27)]


@pytest.mark.parametrize(("size", "few"), [(2, True), (12, False)])
def test_a_deep_convolution_on_small_maps_is_computed_in_blocks_too(size: int, few: bool) -> None:
    """With four patches for many units, but not with two hundred. Both forms give the update of the naive loops."""
    layer, x = nn.Conv2d(3, 96, 3, padding=1, bias=False), torch.randn(1, 3, size, size)
    assert ((3, BLOCK, BLOCK) in _shapes(layer, x)) is few
    wanted = reference.update(copy.deepcopy(layer).double(), x.double(), "hpca")
    assert_close(sums(layer, x, "hpca", {}).gradient_(layer.weight).neg().double(), wanted, tolerance=1e-5)


def test_a_full_map_convolution_is_computed_as_a_linear_layer() -> None:
    """G^T X is then a plain product, here for all eight units at a time."""
    assert (1, 8, 50) in _shapes(nn.Conv2d(2, 8, 5, bias=False), torch.randn(3, 2, 5, 5))
    assert (1, 8, 50) not in _shapes(nn.Conv2d(2, 8, 5, bias=False), torch.randn(3, 2, 6, 6))


def _shapes(layer: Layer, x: Tensor, sizes: TileSizes = CPU) -> list[tuple[int, ...]]:
    """Shapes of the matrix products that compute hpca's sums."""

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func in (Tensor.matmul, Tensor.__matmul__, torch.mm, torch.bmm, Tensor.addmm_):
                shapes.append(tuple(result.shape))
            return result

    shapes: list[tuple[int, ...]] = []
    with torch.no_grad():
        terms = hpca(engine.pre_activation(layer, x, layer(x)).dot_NGK.relu())
        with Recorder(), mock.patch.object(tiles, "sizes_for", return_value=sizes):
            engine.sums(layer, x, terms)
    return shapes


def test_a_group_is_damped_by_its_own_power() -> None:
    """Beside a group of strong responses, a quiet group learns as it would alone."""
    torch.manual_seed(0)
    both = nn.Conv2d(4, 6, 3, groups=2, bias=False, dtype=torch.float64)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    x[:, :2] *= 1000
    alone = nn.Conv2d(2, 3, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        alone.weight.copy_(both.weight[3:])
    quiet = sums(both, x, "hpca", {}).gradient_(both.weight).neg()[3:]
    assert_close(quiet, sums(alone, x[:, 2:], "hpca", {}).gradient_(alone.weight).neg())


def test_a_silent_unit_stays_as_it_is_without_damping() -> None:
    layer = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    update = (
        sums(layer, torch.tensor([[2.0, 1.0]], dtype=torch.float64), "hpca", {"damping": 0.0})
        .gradient_(layer.weight)
        .neg()
    )
    assert update[1].tolist() == [0, 0]
    assert update[0].tolist() == [2 / 2 - 1, 1 / 2]


def test_an_empty_patch_has_no_direction() -> None:
    """All units have the same score for a patch of zeros, and all move towards it; none becomes nan."""
    layer = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    update = sums(layer, torch.zeros(1, 3, dtype=torch.float64), "swta", {}).gradient_(layer.weight).neg()
    assert_close(update, -layer.weight.detach() / 2)


def test_lengths_of_no_image() -> None:
    """A process may have no image of the last batch."""
    layer = nn.Conv2d(4, 6, 3, groups=2)
    x = torch.zeros(0, 4, 8, 8)
    pre = engine.pre_activation(layer, x, layer(x))
    assert pre.dot_NGK.shape == (0, 2, 3)
    assert pre.patch_norm_NG1 is not None
