"""The command: `main` is its entry point; `run` does what a list of words says and returns the exit code.

verbs.py -> the verb's function (train.py, tools.py, commands.py) -> words.py -> compose.py -> cell.py or sweep.py.
"""

from fasthebb_cli.cli.verbs import main, run

__all__ = ["main", "run"]
