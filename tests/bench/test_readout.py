"""`fasthebb bench readout`: how fine-tuning in closed form grows, and a whole one on made rows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fasthebb_cli import cli
from fasthebb_cli.bench import readout
from fasthebb_cli.bench.measure import fitted_exponent


def test_exponents_are_fitted_to_logarithms() -> None:
    assert fitted_exponent({1.0: 3.0, 10.0: 300.0, 100.0: 30000.0}) == pytest.approx(2)


@pytest.mark.slow
def test_every_axis_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = readout.axes
    small = [
        replace(axis, points=tuple(sorted({max(110 + k, point // 30) for k, point in enumerate(axis.points)})))
        for axis in usual(40)
    ]
    monkeypatch.setattr(readout, "axes", lambda classes: small)
    assert cli.run(["bench", "readout", "repeats=1", "classes=40", f"json={tmp_path / 'found.json'}"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())["axes"]
    assert len(found) == len(small)
    out = " ".join(capsys.readouterr().out.split())
    for axis in small:
        assert f"{axis.what}: time grows as {axis.name}^" in out
        assert list(found[f"{axis.what}, {axis.name}"]["ms"]) == [str(point) for point in axis.points]


@pytest.mark.slow
def test_rows_go_through_the_whole_readout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FEATURES", 64), ("COMPONENTS", 20), ("LANDMARKS", 50)):
        monkeypatch.setattr(readout, name, value)
    assert cli.run(["bench", "readout", "rows=3000", f"json={tmp_path / 'found.json'}"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rows"] == 3000
    assert all(seconds >= 0 for seconds in found["seconds"].values())
    out = capsys.readouterr().out
    right = float(out.partition(" % of left-out rows right")[0].rpartition(" ")[2])
    assert right > 50, "the rows of a class lie near each other"
    assert cli.run(["bench", "readout", "rows=30"]) == 2
    assert "rows=30: the kernel has 50 landmarks" in capsys.readouterr().err
