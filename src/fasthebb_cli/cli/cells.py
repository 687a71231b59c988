"""`fasthebb cells VERB key=a,b ...`: a sweep's cells as commands, for those who start them by other means than -m.

A line has the directory of the pre-training that the cell needs and that is not done yet ("-" if there is none), a tab,
and the cell's command, quoted for a shell. Cells of one directory share one pre-training. Nothing is run.
"""

import shlex
from collections.abc import Sequence

from fasthebb_cli.data.dataset import Dataset, load_dataset
from fasthebb_cli.run.plan import plan
from fasthebb_cli.run.validate import validate
from fasthebb_cli.settings.config import Config

# Data sets by their settings and seed: cells of a sweep share most of them
_datasets: dict[tuple[str, int], Dataset] = {}


def cell_line(config: Config, overrides: Sequence[str]) -> str:
    """One cell's line.

    Args:
        overrides: the words that the cell was composed of, `verb=` among them.

    Raises:
        InputError: it can't be run; see `check`.
    """
    key = (repr(config.dataset), config.seed)
    if key not in _datasets:
        _datasets[key] = load_dataset(config.dataset, config.seed)
    stages = plan(config, _datasets[key])
    validate(config, _datasets[key], stages)
    needed = [stage for stage in stages if stage.settings.pretrains and stage.wanted and not stage.finished]
    words = [word for word in overrides if not word.startswith("verb=")]
    return f"{needed[0].directory if needed else '-'}\t{shlex.join([config.verb, *words])}"
