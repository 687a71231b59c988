"""scripts/plot_results.py draws what `fasthebb report` writes."""

import subprocess
import sys
from pathlib import Path

import pytest

from fasthebb_cli.report.csv_table import csv_text

SCRIPT = Path(__file__).parents[2] / "scripts" / "plot_results.py"


def row(method: str, labels: int, mean: float) -> dict[str, object]:
    shown = {"dataset": "digits", "split": "test", "images": 300, "metric": "top1", "n": 3, "ci95": 0.02}
    return shown | {"method": method, "labels": labels, "mean": mean, "label_fraction": labels / 1000}


@pytest.mark.slow
def test_accuracy_against_labels_is_drawn_in_a_panel_a_file(tmp_path: Path) -> None:
    rows = [row(method, labels, 0.8) for method in ("hpca, closed form", "none, backprop") for labels in (30, 1500)]
    (tmp_path / "report.csv").write_text(csv_text(rows))
    figure = tmp_path / "results.svg"
    words = [sys.executable, str(SCRIPT), f"digits={tmp_path / 'report.csv'}", f"again={tmp_path / 'report.csv'}"]
    subprocess.run([*words, figure], check=True)
    drawn = figure.read_text()
    for text in ("digits", "again", "hpca, closed form", "none, backprop", "1,500", "labelled images"):
        assert f">{text}<" in drawn, text
    (tmp_path / "empty.csv").write_text(csv_text([]))
    refused = subprocess.run([*words, f"x={tmp_path / 'empty.csv'}", "x.svg"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "empty.csv: there is no accuracy on test images" in refused.stderr
