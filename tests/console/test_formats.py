"""How text is shown: commands that a shell reads as they are meant, names that fit beside others."""

import shlex

import pytest

from fasthebb_cli.console.formats import LONGEST, shell_words, short

WORDS = ["seed=0", "a b", "layers=['conv[12]']", "it's $HOME", '"', "back`tick'", "a!'b", "", "x='1','2'", "\\'"]


@pytest.mark.parametrize("word", WORDS)
def test_a_shell_reads_a_command_as_it_is_meant(word: str) -> None:
    assert shlex.split(shell_words(["fasthebb", word, "x"])) == ["fasthebb", word, "x"]


def test_a_command_has_few_quotes() -> None:
    assert shell_words(["a=1", "b=['conv[12]']"]) == "a=1 \"b=['conv[12]']\""


def test_a_long_or_strange_name_stays_short_and_on_its_line() -> None:
    assert short("a\nb\x1b\ud800") == "a\\nb\\x1b\\ud800"
    assert len(short("x" * 10**6)) == LONGEST
