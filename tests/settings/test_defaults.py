"""YAML is the only home of a default: dataclasses have none, and whatever leaves a key out gets the YAML's."""

import dataclasses

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fasthebb_cli.errors import InputError
from fasthebb_cli.settings.conf import conf_directory, defaults_of
from fasthebb_cli.settings.config import SHARED, Config, DatasetConfig, TopLevel
from fasthebb_cli.settings.load import completed, load, with_defaults
from fasthebb_cli.settings.stages import KINDS, STAGE_GROUPS
from fasthebb_cli.settings.tools import BenchConfig, DataConfig
from tests.conftest import loaded


@pytest.mark.parametrize("cls", [*SHARED.values(), *KINDS.values(), Config, TopLevel, BenchConfig, DataConfig])
def test_no_dataclass_has_a_default(cls: type) -> None:
    with_a_default = [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    ]
    assert not with_a_default


@pytest.mark.parametrize("name", SHARED | KINDS)
def test_yaml_has_a_default_of_every_key(name: str) -> None:
    """`???` is no default: it says that a choice or the user must give the value."""
    assert set(defaults_of(name)) == {field.name for field in dataclasses.fields((SHARED | KINDS)[name])}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_of_which_only_the_kind_is_given_has_the_defaults_of_its_kind(kind: str) -> None:
    group = next(group for group, kinds in STAGE_GROUPS.items() if kind in kinds)
    names = {"finetune": "backprop", "closed_form": "closed_form"}
    choice = f"{group}={names.get(kind, 'default')}"
    config = loaded("rule=vae", f"+extra.more.kind={kind}", choice)  # the defaults take some from the rule
    assert config.settings["more"] == config.settings[group]


def test_a_choice_that_leaves_keys_out_has_the_defaults() -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_directory()), version_base="1.3"):
        cfg = compose("config", ["finetune=backprop"])
    usual = load(cfg)
    OmegaConf.set_struct(cfg, False)
    cfg.finetune = {"lr": 1.0, "layer_lr": {"conv1*": 0.5}}  # as a file in FASTHEBB_CONF may say
    cfg.gpu = {"device": "cpu"}
    config = load(cfg)
    changes = {"lr": 1.0, "layer_lr": {"conv1*": 0.5}}
    assert config.settings["finetune"] == dataclasses.replace(usual.settings["finetune"], **changes)
    assert config.gpu == dataclasses.replace(usual.gpu, device="cpu")
    assert completed(completed(cfg)) == completed(cfg)


def test_settings_of_one_group_are_checked() -> None:
    assert with_defaults(DatasetConfig, name="digits", size=8).on_bad_image == "error"
    with pytest.raises(InputError, match=r"^dataset.name has no value"):
        with_defaults(DatasetConfig)
    with pytest.raises(InputError, match=r"^unknown key dataset.sise"):
        with_defaults(DatasetConfig, name="digits", sise=8)
    with pytest.raises(InputError, match=r"^dataset.size must be at least 1"):
        with_defaults(DatasetConfig, name="digits", size=0)
