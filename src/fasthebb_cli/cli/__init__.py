"""The command: `main` is its entry point; `run` does what a list of words says and returns the exit code.

verbs.py -> the verb's function (train.py, tools.py, commands.py) -> words.py -> compose.py -> cell.py or sweep.py.

A new verb: VERBS in verbs.py; one that reads finished runs: COMMANDS in commands.py.
A new key: its line in conf/, its field in the dataclass of settings/; words.py and --help find it there.
A new column of `fasthebb runs`: report/overview.py. A new column of a sweep's table: sweep_table.py.
"""

from fasthebb_cli.cli.verbs import main, run

__all__ = ["main", "run"]
