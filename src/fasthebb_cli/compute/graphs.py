"""CUDA graphs: whether steps are recorded and replayed, and the message when one can't be recorded."""

from collections.abc import Iterator
from contextlib import contextmanager

from fasthebb.own import is_own
from fasthebb.replay import NotRecordable
from fasthebb_cli.compute.device import Compute
from fasthebb_cli.errors import RunError
from fasthebb_cli.settings.config import GpuConfig


def replays(config: GpuConfig, compute: Compute, *names: str) -> bool:
    """Whether steps are recorded once and replayed.

    gpu.graph decides. Where it is null, they are, unless the network or the rule is the user's own code: that may
    branch in Python, and a recording would keep the first branch for ever.

    Args:
        names: of the network and the rule; the user's own are called my_package.module:function.
    """
    own = any(is_own(name) for name in names)
    return compute.recordable and (not own if config.graph is None else config.graph)


@contextmanager
def graph_errors() -> Iterator[None]:
    """Around a step that may be recorded.

    Raises:
        RunError: it can't be; the message names gpu.graph.
    """
    try:
        yield
    except NotRecordable as error:
        raise RunError(f"a step of this network can't be one CUDA graph; set gpu.graph=false ({error})") from error
