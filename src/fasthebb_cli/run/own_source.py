"""A digest of the source of a user's own rule, network or data set. It enters the fingerprint.

The digest covers the module that `my_package.module:function` names and, repeatedly, each module that a covered one
imports, within functions too, as long as it is in the same folder tree: below the folder on sys.path where the module
was found. Of an installed package it covers the whole package.
"""

import ast
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from uuid import uuid4

from fasthebb.own import imported, is_own
from fasthebb_cli.compute import processes
from fasthebb_cli.errors import bad_input
from fasthebb_cli.settings.config import Config

SUFFIXES = (".py", *EXTENSION_SUFFIXES)
INSTALLED = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platlib", "purelib")}
BY_NAME = ("import_module", "__import__")  # calls whose argument names the module, so parsing does not find it


def own_sources(config: Config) -> dict[str, str | None]:
    """`source_digest` of each setting that names the user's own code.

    Raises:
        InputError: as `source_digest`.
    """
    named = {"dataset.name": config.dataset.name, "model.name": config.model.name, "rule.name": config.rule.name}
    own = {key: name for key, name in named.items() if is_own(name)}
    return {key: source_digest(key, name) for key, name in own.items()}


@cache
def token() -> str:
    """Stands for a source without a digest: equal in all processes of this run, different in every other run."""
    return processes.from_first(lambda: uuid4().hex)


@cache  # the digest of what was loaded, even if the files change later
def source_digest(key: str, name: str) -> str | None:
    """The digest in hexadecimal; None if a source can't be read, or if it imports by computed names.

    Args:
        key: the setting that the name comes from, for messages.
        name: my_package.module:function.

    Raises:
        InputError: there is no such module or function.
    """
    with bad_input():
        imported(key, name)
    module = name.partition(":")[0]
    file = getattr(sys.modules[module], "__file__", None)
    if file is None or not Path(file).is_file():
        return None
    parts = module.split(".")
    folder = Path(file).absolute().parents[len(parts) - (Path(file).stem != "__init__")]
    digest = blake2b(digest_size=16)
    try:
        installed = folder.resolve() in INSTALLED
        files = _installed(folder, parts[0]) if installed else _imported_files(folder, module)
        for path in sorted(files):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder).as_posix()} {len(content)} ".encode() + content)
    except (OSError, SyntaxError, ValueError):  # a module beside it that can't be read, or is no Python
        return None
    return digest.hexdigest() if files else None


def _installed(folder: Path, name: str) -> list[Path]:
    """All source of a package."""
    single = _file(folder, name)
    return [path for path in (folder / name).rglob("*") if path.suffix in SUFFIXES] or ([single] if single else [])


def _imported_files(folder: Path, module: str) -> set[Path]:
    """Files below the folder of a module and of all that it imports; none if a module imports by a computed name."""
    found, seen, waiting = set[Path](), set[str](), [module]
    while waiting:
        module = waiting.pop()
        path = _file(folder, module)
        if module in seen or path is None:
            continue
        seen.add(module)
        found.add(path)
        waiting.append(module.rpartition(".")[0])  # importing a.b runs a/__init__.py
        if path.suffix == ".py":
            tree = ast.parse(path.read_bytes())
            if _imports_by_name(tree):
                return set()
            waiting += _imports(tree, module if path.stem == "__init__" else module.rpartition(".")[0])
    return found


def _file(folder: Path, module: str) -> Path | None:
    """The file of a module below the folder; None if it isn't there."""
    if not module:
        return None
    place = folder.joinpath(*module.split("."))
    files = [place / f"__init__{suffix}" for suffix in SUFFIXES] + [Path(f"{place}{suffix}") for suffix in SUFFIXES]
    return next((file for file in files if file.is_file()), None)


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Names that may be modules, of all imports in the source. Some name a function or class in a module instead."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}".lstrip(".") for alias in node.names)


def _imports_by_name(tree: ast.Module) -> bool:
    names = (getattr(node.func, "attr", getattr(node.func, "id", "")) for node in ast.walk(tree)
             if isinstance(node, ast.Call))  # fmt: skip
    return any(name in BY_NAME for name in names)
