"""Every experiment file composes to a valid configuration, and says what it is and what to expect."""

import pytest

from fasthebb_cli import cli
from tests.conftest import loaded

FOLDER = cli.conf_directory() / "experiment"
NAMES = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))
PAPER = [name for name in NAMES if name.startswith("fasthebb/")]


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_is_valid(name: str) -> None:
    loaded(f"experiment={name}")
    head = (FOLDER / f"{name}.yaml").read_text().split("defaults:")[0]
    assert f"experiment={name}" in head, "its head gives no command"
    assert "# expected " in head
    assert "# time " in head


@pytest.mark.parametrize("rule", ["paper/swta", "vae", "none"])
@pytest.mark.parametrize("name", PAPER)
def test_paper_experiments_take_any_rule_of_the_papers(name: str, rule: str) -> None:
    config = loaded(f"experiment={name}", f"rule={rule}")
    assert config.rule.name == rule.split("/")[-1]


@pytest.mark.parametrize(
    ("name", "samples", "size", "batch", "penalty"),
    [
        ("cifar10", 40_000, 32, 64, 0.05),
        ("cifar100", 40_000, 32, 64, 0.01),
        ("tiny_imagenet", 90_000, 32, 64, 0.005),
        ("imagenet", 1_200_000, 210, 32, 0.001),
        ("vgg_imagenet", 1_200_000, 224, 32, 0.001),
    ],
)
def test_paper_experiments_pin_the_protocol(name: str, samples: int, size: int, batch: int, penalty: float) -> None:
    config = loaded(f"experiment=fasthebb/{name}")
    assert (config.dataset.train_samples, config.dataset.size) == (samples, size)
    assert config.pretrain.batch_size == config.finetune.batch_size == batch
    assert (config.pretrain.epochs, config.pretrain.schedule) == (20, "constant")
    assert config.pretrain.lr == (1e-4 if "imagenet" in name and "tiny" not in name else 1e-3)
    assert config.rule.options == {"denominator": "patches"}
    tuned = config.finetune
    assert (tuned.epochs, tuned.lr, tuned.schedule, tuned.weight_decay) == (20, 1e-3, "halving", penalty)
    assert (tuned.momentum, tuned.augment, config.label_subset) == (0.9, "none", "random")
    if name != "vgg_imagenet":
        assert (config.model.norm, config.model.dropout) == ("relative", 0.5)
    swta = loaded(f"experiment=fasthebb/{name}", "rule=paper/swta").rule
    assert (swta.whitening, swta.options) == (0.01, {"temperature": 0.02})
