"""`fasthebb bench`, `fasthebb data` and `fasthebb cells`: they compose configurations, but run no stage."""

from collections.abc import Callable, Sequence

from omegaconf import DictConfig

from fasthebb_cli.cli.compose import compose_cells, compose_one
from fasthebb_cli.cli.train import show
from fasthebb_cli.cli.words import Request, read_words
from fasthebb_cli.console.formats import LOST, make_console, write_out
from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.load import load, load_bench, load_data
from fasthebb_cli.settings.stages import STAGES_OF_VERB
from fasthebb_cli.settings.tools import DataConfig


def bench(verb: str, words: Sequence[str]) -> int:
    """See conf/bench.yaml.

    Raises:
        InputError, RunError: as `run_bench`.
    """
    from fasthebb_cli.bench.command import run_bench

    if not words or "=" in words[0] or words[0].startswith("-"):
        raise InputError(
            "bench needs what it measures: fasthebb bench step, layer, scale, traffic, data, run or readout, "
            "key=value ..."
        )
    request = read_words("bench", f"what={words[0]}", words[1:])
    return _each(request, lambda cfg: run_bench(load_bench(cfg), make_console()), verb)


def data(verb: str, words: Sequence[str]) -> int:
    """See conf/data.yaml.

    Raises:
        InputError, RunError: as `run_data`.
    """
    from fasthebb_cli.prepare.command import run_data

    if not words or words[0] not in DataConfig.ACTIONS:
        raise InputError("data needs an action: fasthebb data prepare or fasthebb data info, key=value ...")
    request = read_words("data", f"what={words[0]}", words[1:])
    if not request.show and not request.names("dataset"):
        raise InputError("dataset has no value: say which, as in dataset=image_folder dataset.root=photos")
    return _each(request, lambda cfg: run_data(load_data(cfg), make_console()), verb)


def cells(_: str, words: Sequence[str]) -> int:
    """Prints the cells of a sweep, a line each; see cells.py.

    Raises:
        InputError: the words make no sweep, or one of its cells can't be run.
    """
    from fasthebb_cli.cli.cells import cell_lines

    if not words or words[0] not in STAGES_OF_VERB:
        raise InputError(f"fasthebb cells VERB key=a,b ...: the verb is one of {', '.join(STAGES_OF_VERB)}")
    request = read_words("config", f"verb={words[0]}", ["-m", *words[1:]])
    composed = compose_cells(request, "fasthebb cells")
    write_out("".join(f"{line}\n" for line in cell_lines((cell.overrides, load(cell.cfg)) for cell in composed)))
    return min(len(LOST), 1)


def _each(request: Request, job: Callable[[DictConfig], object], verb: str) -> int:
    """Calls the job with the configuration, or with each of them where -m makes several."""
    if request.show:
        return show(request)
    if request.is_sweep:
        for _, cfg in compose_cells(request, f"fasthebb {verb}"):
            job(cfg)
    else:
        job(compose_one(request))
    return 0
