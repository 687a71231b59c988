"""The files of a report: one Markdown page, one CSV table, and one HTML page that needs no other file."""

import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fasthebb_cli import __version__
from fasthebb_cli.console.formats import harmless
from fasthebb_cli.report import tables
from fasthebb_cli.report.csv_table import Row, csv_text
from fasthebb_cli.report.sections import Section
from fasthebb_cli.run.directory import write_text


def write_report(out: Path, title: str, rows: Sequence[Row], sections: Sequence[Section], notes: Sequence[str]) -> None:
    """Writes report.md, report.csv (the rows) and report.html.

    Raises:
        RunError: `out` can't be written.
    """
    context = {
        "title": title, "sections": sections, "notes": notes, "explanation": tables.explanation(),
        "calibration": tables.CALIBRATION_TOLD, "costs": tables.COSTS_TOLD, "version": __version__,
    }  # fmt: skip
    texts = {
        "report.md": _environment(html=False).get_template("report.md.j2").render(context),
        "report.csv": csv_text(rows),
        "report.html": _environment(html=True).get_template("report.html.j2").render(context),
    }
    for name, text in texts.items():
        write_text(out / name, harmless(text))


class _Inline:
    """A filter that puts an SVG on the page. A running number makes its identifiers unique there."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, svg: str) -> Markup:
        self.count += 1
        return Markup(re.sub(r'(id="|url\(#|href="#)', rf"\g<1>f{self.count}-", svg))  # safe: plots.py made it


def _environment(*, html: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("fasthebb_cli.report", "templates"), autoescape=html, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["inline"] = _Inline()
    environment.filters["unbroken"] = lambda text: re.sub(r" (?=[%±=<])|(?<=[±=<]) ", "\u00a0", str(text))
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|")
    return environment
