"""Own code is part of a run: other source is another fingerprint, in whatever module beside it the change lies."""

import sys
from collections.abc import Callable
from importlib import invalidate_caches
from pathlib import Path

import pytest

from fasthebb_cli.errors import InputError
from fasthebb_cli.run.own_source import source_digest, token
from tests.conftest import Ran

RULE = """
from fasthebb.rules import Terms

def my_oja(y_NGK):
    return Terms(gate={gate}, recombination=y_NGK, mask="diag")
"""
FILES = {
    "top_of_all.py": "from inner.rules import rule\nimport json\n",
    "inner/__init__.py": "",
    "inner/rules.py": "from . import gates\n\ndef rule(y):\n    from inner.late import scale\n    return scale(y)\n",
    "inner/gates.py": "import numpy\n",
    "inner/late.py": "def scale(y):\n    return y\n",
    "stranger.py": "x = 1\n",
}


def digest_of(name: str) -> str | None:
    """As a new process finds it."""
    return source_digest.__wrapped__("rule.name", name)


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_digest_covers_what_the_module_imports_from_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "here", FILES)
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    first = digest_of("top_of_all:rule")
    assert first is not None
    for name in ("top_of_all.py", "inner/__init__.py", "inner/rules.py", "inner/gates.py", "inner/late.py"):
        written(tmp_path / "here", {name: FILES[name] + "\nchanged = True\n"})
        assert digest_of("top_of_all:rule") != first, name
        written(tmp_path / "here", {name: FILES[name]})
    written(tmp_path / "here", {"stranger.py": "x = 2\n"})
    assert digest_of("top_of_all:rule") == first
    moved = written(tmp_path / "elsewhere", FILES)
    monkeypatch.setattr(sys.modules["top_of_all"], "__file__", str(moved / "top_of_all.py"))
    assert digest_of("top_of_all:rule") == first


def test_a_source_that_can_not_be_had_has_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = "from importlib import import_module\ndef rule(y):\n    return import_module('gates').rule(y)\n"
    written(tmp_path, {"by_name.py": made})
    monkeypatch.syspath_prepend(str(tmp_path))
    assert source_digest("rule.name", "by_name:rule") is None
    assert source_digest("rule.name", "builtins:sorted") is None


def test_a_module_beside_it_that_is_no_python_leaves_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = "def rule(y):\n    import broken_beside\n    return y\n"
    written(tmp_path, {"lazy_of_all.py": lazy, "broken_beside.py": "def (\n"})
    monkeypatch.syspath_prepend(str(tmp_path))
    assert digest_of("lazy_of_all:rule") is None
    written(tmp_path, {"broken_beside.py": ""})
    assert digest_of("lazy_of_all:rule") is not None


def test_a_linked_module_is_read_through_its_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, {"elsewhere/version_2.py": "def rule(y):\n    return y\n", "here/beside.txt": ""})
    (tmp_path / "here/linked_rule.py").symlink_to(tmp_path / "elsewhere/version_2.py")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    first = digest_of("linked_rule:rule")
    assert first is not None
    written(tmp_path, {"elsewhere/version_2.py": "def rule(y):\n    return -y\n"})
    assert digest_of("linked_rule:rule") not in (None, first)


def test_an_installed_package_stands_for_itself() -> None:
    """Not for all that is installed beside it, which it may import by whatever names."""
    assert source_digest("dataset.name", "yaml:safe_load") is not None


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"rule.name=nowhere:rule: .*; give my_package.module:function"):
        source_digest("rule.name", "nowhere:rule")


@pytest.mark.slow
def test_another_gate_in_the_same_function_is_another_run(
    command: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(source: str) -> str:
        """As a new process runs it."""
        written(tmp_path, {"myrules.py": source})
        sys.modules.pop("myrules", None)
        invalidate_caches()
        source_digest.cache_clear()
        token.cache_clear()
        ran = command("pretrain", "rule=myrules:my_oja", "rule.lr=0.001", "pretrain.epochs=1")
        assert ran.code == 0, ran.err
        return ran.out

    assert "reused" not in run(RULE.format(gate="y_NGK"))
    assert "finished before, reused" in run(RULE.format(gate="y_NGK"))
    text = run(RULE.format(gate="y_NGK.tanh()"))
    assert "reused" not in text
    assert "it differs in rule.source" in text
    for _ in range(2):
        text = run("import importlib\nimportlib.import_module('os')\n" + RULE.format(gate="y_NGK"))
        assert "rule.name: the source of this code can't be read" in text
        assert "reused" not in text.replace("is reused or resumed", "")
