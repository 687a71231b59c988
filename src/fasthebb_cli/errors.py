"""The two kinds of error that a user sees as one line; everything else is a fault of ours and shows its traceback."""


class InputError(Exception):
    """What was asked for can't be done: exit code 2. The message names the key or file and what would be accepted."""


class RunError(Exception):
    """What was asked for failed while running: exit code 1. The message names the layer, file or stage."""


class Interrupted(Exception):
    """The user or the system asked the run to stop; its state is saved at the place that the message names."""
