"""`fasthebb bench readout`: fine-tuning in closed form on made rows, against images, labels, features and components.

Each axis grows over two decades, or as far as memory and a minute allow; its exponent is fitted to the last three
points. With `rows=N`, N rows of 4,096 features go through the whole of it once instead: sums, components, a kernel with
landmarks from sums.
"""

import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from fasthebb.readout import graph, kernel, projection
from fasthebb.readout.candidates import JUDGED, Rows, inputs
from fasthebb.readout.choose import basis, fitted, fitted_to_sums
from fasthebb.readout.moments import Moments
from fasthebb.readout.ridge import Products
from fasthebb_cli.bench.measure import Work, fitted_exponent
from fasthebb_cli.compute.device import Compute
from fasthebb_cli.console.tables import titled_table
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.tools import BenchConfig

BATCH = 256  # rows that are added at a time
FEATURES, COMPONENTS, LANDMARKS = 4096, 1000, 4000


@dataclass(frozen=True)
class Axis:
    """Work at growing points.

    Args:
        name: what grows.
        what: what is measured.
        theory: the exponent that the time may have.
        make: point -> work, made when it is its turn, so that only one is in memory.
    """

    name: str
    what: str
    theory: int
    points: tuple[int, ...]
    make: Callable[[int], Work]


def bench_readout(bench: BenchConfig, compute: Compute, console: Console) -> dict[str, Any]:
    """Medians in milliseconds by axis and point, and exponents; or seconds and memory of `bench.rows` rows."""
    if bench.rows is not None:
        return whole_readout(bench.rows, bench.classes, console)
    result: dict[str, Any] = {}
    for axis in axes(bench.classes):
        times = {}
        for point in axis.points:
            work = axis.make(point)
            work()
            times[point] = statistics.median(_milliseconds(work) for _ in range(bench.repeats))
        exponent = fitted_exponent({float(x): y for x, y in list(times.items())[-3:]})
        table = titled_table(console, f"{axis.what}: time grows as {axis.name}^{exponent:.2f}, theory {axis.theory}")
        table.add_column(axis.name, justify="right")
        table.add_column("ms", justify="right")
        for point, milliseconds in times.items():
            table.add_row(f"{point:,}", f"{milliseconds:,.1f}")
        console.print(table)
        times_by_name = {str(point): value for point, value in times.items()}
        result[f"{axis.what}, {axis.name}"] = {"ms": times_by_name, "exponent": exponent, "theory": axis.theory}
    return {"axes": result}


def axes(classes: int) -> list[Axis]:
    return [
        Axis("images", "sums of 1,024 features", 1, (300, 3000, 30000), partial(_sums, 1024)),
        Axis("features", "sums of 1,000 images", 2, (256, 1024, 4096, 16384), lambda size: _sums(size, 1000)),
        Axis("features", "components, all that there are", 3, (128, 512, 1024), _components),
        Axis("features", "components, 1,000", 3, (1024, 2048, 4096, 8192), _components),
        Axis("labels", "kernel, 3 rows a label", 3, (30, 100, 300, 1000, 3000), partial(_kernel, classes)),
        Axis("images", "graph of 10 neighbours", 2, (300, 1000, 3000, 10000, 30000), _graph),
        Axis("images", "spread over the graph", 1, (300, 1000, 3000, 10000, 30000), partial(_spread, classes)),
        Axis("images", "ridge from sums of 1,000 components", 1, (3000, 30000, 300000), partial(_ridge, classes)),
    ]


def _sums(size: int, images: int) -> Work:
    rows_BD = torch.randn(BATCH, size)

    def work() -> None:
        moments = Moments(size)
        for start in range(0, images, BATCH):
            moments.add(rows_BD[: images - start])

    return work


def _components(size: int) -> Work:
    rows_ND = torch.randn(2 * size, size) * torch.arange(1, size + 1) ** -0.5
    covariance_DD = (rows_ND.T @ rows_ND / len(rows_ND)).double()
    return lambda: projection.leading_components(covariance_DD, COMPONENTS)


def _made_rows(classes: int, labels: int, components: int, copies: int = 3) -> Rows:
    labels_L = torch.arange(labels) % classes
    centres_CK = torch.randn(classes, components)
    copies_RLK = centres_CK[labels_L] + 2 * torch.randn(copies, labels, components)
    return Rows(copies_RLK, labels_L, 2, classes)


def _kernel(classes: int, labels: int) -> Work:
    rows = _made_rows(classes, labels, COMPONENTS)
    return lambda: fitted(rows, classifier="kernel")


def _graph(images: int) -> Work:
    rows_NK = kernel.unit_rows(torch.randn(images, COMPONENTS))
    return lambda: graph.neighbour_graph(rows_NK, 10)


def _spread(classes: int, images: int) -> Work:
    found = graph.neighbour_graph(kernel.unit_rows(torch.randn(images, 50)), 10)
    labelled_L = torch.arange(min(10 * classes, images))
    sources_NX = graph.sources(images, labelled_L, labelled_L)
    return lambda: graph.spread(found, sources_NX, 0.9)


def _ridge(classes: int, images: int) -> Work:
    rows_BK, labels_B = torch.randn(BATCH, COMPONENTS), torch.arange(BATCH) % classes

    def work() -> None:
        products = Products(COMPONENTS, classes)
        for start in range(0, images, BATCH):
            here = slice(0, images - start)
            products.add(rows_BK[here], kernel.targets(labels_B[here], classes))

    return work


def whole_readout(count: int, classes: int, console: Console) -> dict[str, Any]:
    """Seconds of each part of the readout of `count` rows of 4,096 features, all labelled, and the most memory used.

    Raises:
        InputError: fewer rows than landmarks.
    """
    if count < LANDMARKS:
        raise InputError(f"rows={count}: the kernel has {LANDMARKS:,} landmarks; use at least so many rows")
    seconds: dict[str, float] = {}
    before = _peak_bytes()

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        found = work()
        seconds[name] = time.perf_counter() - began
        console.print(f"{name}: {seconds[name]:.1f} s", highlight=False)
        return found

    def features() -> Iterator[Tensor]:
        """Rows with a class each; made again for every pass, as images are read again."""
        draws = torch.Generator().manual_seed(0)
        centres_CD = torch.randn(classes, FEATURES, generator=draws)
        for start in range(0, count, BATCH):
            labels_B = torch.arange(start, min(start + BATCH, count)) % classes
            noise_BD = torch.randn(len(labels_B), FEATURES, generator=draws)
            yield noise_BD.mul_(4).add_(centres_CD[labels_B])

    timed("rows made", lambda: sum(len(rows_BD) for rows_BD in features()))
    moments, differences = Moments(FEATURES), Moments(FEATURES)

    def add_up() -> None:
        for rows_BD in features():
            moments.add(rows_BD)
            differences.add(rows_BD - rows_BD.roll(1, 1))

    timed("sums of features and of differences between views (rows made included)", add_up)

    def solve() -> tuple[Tensor, Tensor]:
        map_DK = projection.leading_components(moments.covariance(), COMPONENTS)
        differences_KK = map_DK.T @ differences.mean_product() @ map_DK / 2
        return moments.mean().float(), (map_DK @ projection.view_whitening(differences_KK, 0.1)).float()

    mean_D, map_DK = timed("components", solve)
    kept = max(LANDMARKS, JUDGED)
    first = islice(features(), math.ceil(kept / BATCH))
    some_LK = torch.cat([(rows_BD - mean_D) @ map_DK for rows_BD in first])[:kept]
    rows = Rows(some_LK[None], torch.arange(kept) % classes, 1, classes)
    made = timed("landmarks and the kernel's sharpness", lambda: basis(rows, LANDMARKS, None, None)).buffers
    products = Products(LANDMARKS, classes)

    def second() -> None:
        for number, rows_BD in enumerate(features()):
            z_BK = kernel.unit_rows((rows_BD - mean_D) @ map_DK)
            labels_B = torch.arange(number * BATCH, number * BATCH + len(rows_BD)) % classes
            x_BX = inputs(z_BK, made["rows"], float(made["sharpness"]))
            products.add(x_BX, kernel.targets(labels_B, classes))

    timed("sums of the kernel (rows made included)", second)
    found = timed("classifier", lambda: fitted_to_sums(rows, products, made, None))
    memory = _peak_bytes() - before
    total = sum(seconds.values())
    console.print(
        f"{count:,} rows of {FEATURES:,} features, {classes:,} classes: {total:,.0f} s, at most {memory / 1e9:.2f} GB; "
        f"{100 * found.report['expected_top1']:.1f} % of left-out rows right",
        highlight=False,
        soft_wrap=True,
    )
    return {"rows": count, "features": FEATURES, "seconds": seconds, "peak_bytes": memory}


def _peak_bytes() -> int:
    """The most memory that this process has had so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _milliseconds(work: Work) -> float:
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)
