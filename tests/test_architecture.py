"""Who may import whom: hebb <- stages <- run <- use <- prepare <- cli; nets and data know nothing of hebb; report
only reads.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fasthebb_cli

ROOT = Path(fasthebb_cli.__file__).parent
FORBIDDEN = {
    "hebb": {"prepare", "stages", "run", "cli", "use", "report", "nets", "data", "config", "errors", "compute"},
    "nets": {"prepare", "hebb", "stages", "run", "use", "report", "cli", "data"},
    "data": {"prepare", "hebb", "stages", "run", "use", "report", "cli", "nets"},
    "stages": {"prepare", "run", "use", "cli", "report"},
    "run": {"prepare", "use", "cli", "report"},
    "use": {"prepare", "hebb", "stages", "cli", "report"},
    "prepare": {"hebb", "stages", "nets", "cli", "report"},
    "report": {"prepare", "cli", "use", "stages", "hebb", "nets", "data", "config"},
}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_arrows(room: str) -> None:
    for path in (ROOT / room).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for module in modules:
                parts = module.split(".")
                if parts[0] == "fasthebb_cli" and len(parts) > 1:
                    assert parts[1] not in FORBIDDEN[room], f"{path.name} imports {module}"


def test_report_starts_without_torch() -> None:
    code = (
        "import sys, fasthebb_cli.report.command, fasthebb_cli.report.overview, fasthebb_cli.report.comparison, "
        "fasthebb_cli.report.page, fasthebb_cli.report.layers; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_hebb_needs_torch_only() -> None:
    allowed = {
        "torch",
        "fasthebb_cli",
        "collections",
        "dataclasses",
        "functools",
        "typing",
        "inspect",
        "fnmatch",
        "itertools",
    }
    for path in (ROOT / "hebb").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in allowed, path
