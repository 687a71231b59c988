"""`fasthebb cells VERB key=a,b ...`: a sweep's cells as commands, for those who start them by other means than -m.

A line is the directory of the pre-training that the cell still needs ("-" if it needs none), a tab, and the cell's
command, quoted for a shell. Cells with the same directory share one pre-training. Nothing is run.
"""

import shlex
from collections.abc import Iterable, Iterator, Sequence

from fasthebb_cli.data.dataset import Dataset, load_dataset
from fasthebb_cli.run.validate import planned
from fasthebb_cli.settings.config import Config


def cell_lines(cells: Iterable[tuple[Sequence[str], Config]]) -> Iterator[str]:
    """One line a cell.

    Args:
        cells: the overrides that a cell was composed of, `verb=` among them, and its configuration.

    Raises:
        InputError: a cell can't be run; see `planned`.
    """
    datasets: dict[tuple[str, int, str | None], Dataset] = {}  # cells of a sweep share most of them
    for overrides, config in cells:
        key = (repr(config.dataset), config.seed, config.labelled)
        if key not in datasets:
            datasets[key] = load_dataset(config.dataset, config.seed, config.labelled)
        _, stages = planned(config, datasets[key])
        needed = [stage for stage in stages if stage.settings.pretrains and stage.wanted and not stage.finished]
        words = [word for word in overrides if not word.startswith("verb=")]
        yield f"{needed[0].directory if needed else '-'}\t{shlex.join([config.verb, *words])}"
