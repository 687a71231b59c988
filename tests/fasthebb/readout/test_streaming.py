"""Sums over images need the same memory for ten times as many."""

import subprocess
import sys

import pytest

ROWS = 1_281_167  # training images of ImageNet
COUNT = """
import sys
import torch
from fasthebb.readout import kernel, ridge
from fasthebb.readout.candidates import Rows
from fasthebb.readout.choose import fitted_to_sums
from fasthebb.readout.moments import Moments
torch.set_num_threads(1)
rows, size, classes = int(sys.argv[1]), 32, 10
draws = torch.Generator().manual_seed(0)
centres = 2 * torch.randn(classes, size, generator=draws)
def some(count):
    labels = torch.randint(classes, (count,), generator=draws)
    return centres[labels] + torch.randn(count, size, generator=draws), labels
moments, products = Moments(size), ridge.Products(size, classes)
for start in range(0, rows, 4096):
    x, labels = some(min(4096, rows - start))
    moments.add(x)
    products.add(kernel.unit_rows(x), kernel.targets(labels, classes))
x, labels = some(2000)
made = fitted_to_sums(Rows(x[None], labels, 1, classes), products, {"rows": torch.empty(0)}, None)
assert float(moments.count) == rows
assert made.report["expected_top1"] > 0.95, made.report["expected_top1"]
# not ru_maxrss, which begins with that of the process that started this one
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def peak_kib(rows: int) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT, str(rows)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
def test_ridge_over_as_many_rows_as_imagenet_has_needs_no_more_memory() -> None:
    few, many = peak_kib(ROWS // 10), peak_kib(ROWS)
    assert many - few < 32 * 1024, f"{few} KiB, and {many} for ten times as many rows"  # the rows alone take 156 MiB
