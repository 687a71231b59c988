"""Bytes that operations read from memory and write to it, counted as if no cache held anything in between.

Each operation of torch reads all its arguments and writes all its results once. Views move nothing. On a GPU, where
tensors are larger than caches and tensor cores do the products, this is what takes the time.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fasthebb.learner import HebbianLearner
from fasthebb.responses import RESPONSES, Moments, PreActivation
from fasthebb.settings import RULES, RuleSetting
from fasthebb_cli.bench.measure import Work
from fasthebb_cli.compute.device import Compute
from fasthebb_cli.console.tables import titled_table
from fasthebb_cli.settings.tools import BenchConfig

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "convolution", "mkldnn_convolution", "convolution_backward")


class Traffic(NamedTuple):
    """Bytes of matrix products and convolutions, and of all other operations."""

    products_read: int
    products_written: int
    others_read: int
    others_written: int

    @property
    def total(self) -> int:
        return sum(self)


def traffic(work: Work) -> Traffic:
    """Runs the work and counts."""
    with _Counting() as counting:
        work()
    return Traffic(*counting.products, *counting.others)


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products, self.others = [0, 0], [0, 0]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _moves(func):
            counted = self.products if _name(func) in PRODUCTS else self.others
            counted[0] += sum(map(_bytes, _read(func, args, kwargs)))
            counted[1] += sum(map(_bytes, _tensors(result)))
        return result


def _moves(func: Any) -> bool:
    """Whether an operation touches the numbers in its tensors: a view does not, nor does what only allocates."""
    is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
    return not is_view and not _name(func).startswith(("empty", "new_empty", "detach", "alias", "_unsafe_view"))


def _name(func: Any) -> str:
    """The operation's name without the mark of those that work in place."""
    return str(func._schema.name).partition("::")[2].rstrip("_")


def _read(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that the operation reads: not those that it only writes over."""
    if _name(func).startswith("new_"):
        return []
    written = {a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | dict(kwargs)
    overwrites = written if _name(func) in ("copy", "zero", "fill", "normal", "uniform") else written & {"out"}
    return _tensors([value for name, value in given.items() if name not in overwrites])


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Of the numbers that there are: an expanded tensor has fewer than its shape says."""
    numbers = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= size if stride else 1
    return numbers * tensor.element_size()


def bench_traffic(bench: BenchConfig, compute: Compute, console: Console) -> dict[str, Any]:
    """For each rule, how often a step of a convolution passes over its response, besides the products.

    The convolution has 96 inputs and 128 units of 5 x 5, as conv6's second has. One pass is a read or a write of
    N x K numbers. The least is a read of the response and a write of the gate; neither, where the gate is the layer's
    own output and nothing else is summed over it.
    """
    side = max(8, bench.images // 2)
    images = compute.arrange(torch.randn(2 * bench.batch, 96, side, side, device=compute.device))
    response = 4 * bench.batch * (side - 4) ** 2 * 128  # bytes of a batch
    title = f"passes over the response, convolution of {side} x {side}, batch {bench.batch}, {compute.describe()}"
    table = titled_table(console, title)
    for name in ("rule", "read", "least", "written", "least", "of products"):
        table.add_column(name, justify="left" if name == "rule" else "right")
    result = {}
    for rule, setting in RULES.items():
        layer = nn.Conv2d(96, 128, 5, bias=False).to(compute.device)
        learner = HebbianLearner(nn.Sequential(layer), setting, lr=1e-3)
        learner.learn(images)  # the first step also sets running moments and counts for the statistics
        # of twice as many images less that of a batch: what weights need does not grow with images
        one, two = (traffic(partial(learner.learn, part)) for part in (images[: bench.batch], images))
        learner.finish()
        read, written = ((b - a) / response for a, b in zip(one[2:], two[2:], strict=True))
        products = sum(b - a for a, b in zip(one[:2], two[:2], strict=True)) / response
        least_read, least_written = least_passes(setting)
        result[rule] = {
            "read": read, "written": written, "least_read": least_read, "least_written": least_written,
            "products": products,
        }  # fmt: skip
        table.add_row(rule, f"{read:.1f}", str(least_read), f"{written:.1f}", str(least_written), f"{products:.1f}")
    console.print(table)
    return {"passes": result}


def least_passes(setting: RuleSetting) -> tuple[int, int]:
    """How often a step must read the response, and write a tensor of its size, besides the products of the update."""
    dot_NGK = torch.linspace(0.1, 1, 24).reshape(3, 2, 4)
    pre = PreActivation(dot_NGK, torch.ones(2, 4), torch.ones(3, 2, 1), torch.ones(2, 4))
    y_NGK = RESPONSES[setting.response](pre)
    terms = setting.rule(y_NGK, *([Moments.of(y_NGK)] if setting.running else []))
    is_output = terms.gate.data_ptr() == dot_NGK.data_ptr()
    summed = terms.mask == "diag" or terms.share is not None or setting.running
    return int(not is_output or summed), int(not is_output)
