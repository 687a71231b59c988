"""Who may import whom: an arrow that is not listed here is a mistake. Imports within functions count as well."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import fasthebb
import fasthebb_cli

LIBRARY, RUNNER = Path(fasthebb.__file__).parent, Path(fasthebb_cli.__file__).parent
ABOVE_STAGES = {"fasthebb", "settings", "compute", "data", "stages", "console"}
# package -> what it may import besides itself and fasthebb_cli.errors; a name with a dot is that one module
ALLOWED: dict[str, set[str]] = {
    "fasthebb": set(),
    "settings": set(),
    "compute": {"settings", "fasthebb"},
    "data": {"settings", "compute", "fasthebb.own"},
    "console": {"compute.launch"},
    "stages": {"fasthebb", "data", "compute", "settings"},
    "run": ABOVE_STAGES,
    "report": {"settings", "run.directory", "console", "fasthebb.stage_files", "fasthebb.typed"},
    "use": ABOVE_STAGES | {"run"},
    "prepare": ABOVE_STAGES | {"run"},
    "bench": ABOVE_STAGES | {"run"},
    "cli": ABOVE_STAGES | {"run", "report", "use", "prepare", "bench"},
}
LOOSE = {"__init__.py", "__main__.py", "errors.py"}
LIBRARY_NEEDS = {"torch", "torchvision", "safetensors", *sys.stdlib_module_names}
ONLY_WITH_TRITON = {"fused.py", "kernels.py"}  # where it is missing, they are not used


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, and every name that it takes from one, as module.name."""
    package = ".".join(path.relative_to(LIBRARY.parent).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def within(module: str, place: str) -> bool:
    return f"{module}.".startswith(f"{place}.")


def test_every_arrow_is_an_allowed_one() -> None:
    wrong = []
    for name, targets in ALLOWED.items():
        root, package = (LIBRARY, name) if name == "fasthebb" else (RUNNER / name, f"fasthebb_cli.{name}")
        own = {package} | {other if within(other, "fasthebb") else f"fasthebb_cli.{other}" for other in targets}
        if name != "fasthebb":
            own |= {"fasthebb_cli.errors", "fasthebb_cli.__version__"}
        for path in root.rglob("*.py"):
            for module in imported(path):
                ours = within(module, "fasthebb") or within(module, "fasthebb_cli")
                if ours and not any(within(module, place) for place in own):
                    wrong.append(f"{path.relative_to(root.parent)} imports {module}")
                if name == "fasthebb" and not ours and module.split(".")[0] not in LIBRARY_NEEDS:
                    if module.split(".")[0] == "triton" and path.name in ONLY_WITH_TRITON:
                        continue
                    wrong.append(f"{path.relative_to(root.parent)} imports {module}")
    packages = {path.name for path in RUNNER.iterdir() if any(path.glob("*.py"))}
    assert packages == set(ALLOWED) - {"fasthebb"}
    assert {path.name for path in RUNNER.glob("*.py")} == LOOSE
    assert not wrong, "\n".join(wrong)


def test_what_only_reads_files_starts_without_torch() -> None:
    code = (
        "import sys, fasthebb_cli.report.command, fasthebb_cli.report.overview, fasthebb_cli.report.comparison, "
        "fasthebb_cli.report.page, fasthebb_cli.report.layers, fasthebb_cli.run.directory, fasthebb_cli.cli; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
