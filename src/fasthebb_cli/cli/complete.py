"""Shell completion: verbs and flags here, keys and choices by Hydra, from whose sight the verb is taken."""

import os
from collections.abc import Iterable, Sequence

from rich.console import Console


def complete(arguments: Sequence[str], verbs: Iterable[str], flags: Iterable[str]) -> int:
    """What may come next on the line in COMP_LINE, or the shell's code that asks for it; returns the exit code."""
    if any(word.startswith("query") for word in arguments):
        command, _, rest = os.environ.get("COMP_LINE", "").lstrip().partition(" ")
        _, space, words = rest.lstrip().partition(" ")
        if not space:
            return _print([*verbs, "--help", "--version"])
        if words.split(" ")[-1].startswith("-"):
            return _print(flags)
        os.environ["COMP_LINE"] = f"{command} {words.lstrip()}"
    from fasthebb_cli.cli.hydra_main import call_hydra

    return call_hydra(lambda cfg: None, "config", arguments)


def _print(words: Iterable[str]) -> int:
    Console().print(" ".join(words), soft_wrap=True, highlight=False)
    return 0
