"""Who may import whom: hebb <- stages <- run <- use <- cli; nets and data know nothing of hebb."""

import ast
from pathlib import Path

import pytest

import fasthebb_cli

ROOT = Path(fasthebb_cli.__file__).parent
FORBIDDEN = {
    "hebb": {"stages", "run", "cli", "use", "nets", "data", "config", "errors", "compute"},
    "nets": {"hebb", "stages", "run", "use", "cli", "data"},
    "data": {"hebb", "stages", "run", "use", "cli", "nets"},
    "stages": {"run", "use", "cli"},
    "run": {"use", "cli"},
    "use": {"hebb", "stages", "cli"},
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


def test_hebb_needs_torch_only() -> None:
    allowed = {"torch", "fasthebb_cli", "collections", "dataclasses", "functools", "typing", "inspect", "fnmatch"}
    for path in (ROOT / "hebb").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in allowed, path
