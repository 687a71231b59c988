"""The command that a report gives for a method composes what the method's runs were made with."""

import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fasthebb_cli.report.chains import Index
from fasthebb_cli.report.directories import find_directories
from fasthebb_cli.report.grid import build_grids
from fasthebb_cli.report.recipes import command_of
from fasthebb_cli.settings.conf import conf_directory
from tests.report.made import make_run


def composed(*words: str) -> str:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_directory()), version_base="1.3"):
        return OmegaConf.to_yaml(compose("config", overrides=list(words)), resolve=True)


@pytest.mark.parametrize(
    "words",
    [
        ("rule=hpca",),
        ("rule=hpca", "finetune=backprop", "finetune.epochs=5"),
        ("rule=hpca", "finetune=hebbian"),
        ("rule=none",),
        ("rule=none", "finetune=closed_form", "finetune.pool=2"),
        ("rule=random", "model.width=0.5"),
    ],
)
def test_a_command_names_the_way_to_fine_tune(tmp_path: Path, words: tuple[str, ...]) -> None:
    shared = ("dataset=digits", "label_fraction=0.1", "seed=3")
    before = composed(*shared, *words)
    directory = make_run(tmp_path, "hpca", 0.1, 3, 0.9)
    (directory / "config.yaml").write_text(before)
    found = find_directories([tmp_path])
    (method,) = build_grids(found, Index(found))[0].methods
    program, verb, *given = shlex.split(command_of(method, conf_directory()))
    assert (program, verb) == ("fasthebb", "train")
    assert composed(*given) == before
