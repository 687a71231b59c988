"""What the stages of one cell share."""

from dataclasses import dataclass

from fasthebb_cli.compute.device import Compute
from fasthebb_cli.console.view import View
from fasthebb_cli.data.dataset import Dataset
from fasthebb_cli.settings.config import Config


@dataclass(frozen=True)
class Cell:
    """One combination of settings, ready to run.

    Args:
        yaml: the composed configuration as text; each stage's directory gets a copy.
        compute: where numbers are computed.
        view: what the user sees.
    """

    config: Config
    yaml: str
    dataset: Dataset
    compute: Compute
    view: View
