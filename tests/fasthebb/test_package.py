"""What `from fasthebb import ...` offers, and that it costs nothing before it is used."""

import subprocess
import sys

import pytest

import fasthebb


@pytest.mark.parametrize("name", fasthebb.__all__)
def test_every_public_name_is_there_and_described(name: str) -> None:
    value = getattr(fasthebb, name)
    assert isinstance(value, (str, dict)) or value.__doc__
    assert name in dir(fasthebb)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'fasthebb' has no attribute 'conv7'"):
        fasthebb.conv7  # noqa: B018


def test_the_import_alone_loads_no_torch() -> None:
    code = "import sys, fasthebb; fasthebb.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
