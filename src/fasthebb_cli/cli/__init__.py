"""The command: `main` is its entry point, and `run` does what a list of words says."""

from fasthebb_cli.cli.verbs import main, run

__all__ = ["main", "run"]
