"""Every rule with every way to fine-tune and every kind of network: each runs once, tiny, or is refused in one line.

conv6 takes them all. Elsewhere every rule runs with the whole network and with one that is cut, and every way to
fine-tune with a rule, with a rule that whitens and with none: there is no code that knows of all three at once.
"""

import re
from collections.abc import Callable

import pytest

from fasthebb_cli.settings.conf import conf_directory
from tests.conftest import Ran

Command = Callable[..., Ran]
CONF = conf_directory()


def choices(group: str) -> list[str]:
    """Names of a group's files, those in folders too; `own` stands for one of a user's."""
    paths = (path.relative_to(CONF / group).with_suffix("") for path in sorted((CONF / group).rglob("*.yaml")))
    return [str(path) for path in paths if str(path) != "own"]


RULES, FINETUNES = choices("rule"), choices("finetune")
WHOLE_AND_CUT, OF_EACH_KIND = ("backprop", "few_labels"), ("hpca", "swta", "none")
MODELS = {  # at about the smallest images and the least width that each takes
    "conv6": ["dataset.size=24", "model.width=0.02"],
    "conv10": ["dataset.size=162", "model.width=0.02"],
    "softhebb": ["dataset.size=8", "model.width=0.1"],
    "triangle": ["dataset.size=8", "model.width=0.02"],
    "torchvision:shufflenet_v2_x0_5": ["dataset.size=16"],
}
TINY = (
    "dataset=digits", "dataset.train_samples=32", "dataset.validation_samples=16", "dataset.test_samples=16",
    "pretrain.batch_size=16", "pretrain.epochs=1", "finetune.batch_size=16", "finetune.epochs=1",
    "gpu=cpu",
)  # fmt: skip


def refusal(rule: str, finetune: str, model: str) -> str | None:
    """What the error says of a combination that makes no sense; None: it runs."""
    if finetune == "closed_form" and model.startswith("torchvision:"):
        return "finetune.layers: the network has no children that give maps"
    if finetune == "few_labels" and model.startswith("torchvision:"):
        return "finetune.layer=conv2: no layer 'conv2'; the network has: features"
    if finetune == "few_labels" and model == "triangle":
        return "finetune.layer=conv2: no layer 'conv2'; the network has: conv1"
    if rule == "vae" and model not in ("conv6", "conv10"):
        return "rule=vae: a .* has no mirror image"
    return None


def tried(rule: str, model: str) -> list[str]:
    if model == "conv6" or rule in OF_EACH_KIND:
        return FINETUNES
    return [finetune for finetune in FINETUNES if finetune in WHOLE_AND_CUT]


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [pytest.param(model, marks=[pytest.mark.marathon] if model != "conv6" else []) for model in MODELS]
)
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_and_a_network_run_with_every_way_to_fine_tune(command: Command, rule: str, model: str) -> None:
    for finetune in tried(rule, model):
        few = ["finetune.classifier_epochs=1"] if finetune == "gentle" else []
        tiny = TINY if finetune != "closed_form" else [word for word in TINY if word != "finetune.epochs=1"]
        words = [*tiny, f"rule={rule}", f"model={model}", *MODELS[model], f"finetune={finetune}", *few]
        ran = command("train", *words, small=False)
        expected = refusal(rule, finetune, model)
        if expected is None:
            assert ran.code == 0, f"{finetune}: {ran.err}"
        else:
            assert_refused(ran, expected)
    runs = [name for name in tried(rule, model) if refusal(rule, name, model) is None]
    ran_once = ran.directories("pretrain")
    assert len(ran_once) == (1 if runs and rule != "none" else 0), "what is learnt without labels is shared"


def assert_refused(ran: Ran, expected: str) -> None:
    """By one line, and with exit code 2."""
    assert ran.code == 2, ran.err
    assert len(ran.err.splitlines()) == 1, ran.err
    assert re.search(expected, ran.err), ran.err


@pytest.mark.slow
def test_a_whitened_network_is_cut_read_and_computed_in_every_way(command: Command) -> None:
    """Networks are tried on the meta device first, where whitening has failed."""
    for words in (
        ["finetune.layer=conv1"],
        ["finetune.layer=conv1.0"],
        ["finetune=few_labels", "finetune.hidden=4"],
        ["finetune=few_labels", "finetune.by_rule=[conv1]"],
        ["finetune=few_labels", "stages=[pretrain,finetune,probe,evaluate]"],
        ["finetune=few_labels", "gpu.micro_batch=4"],
        ["finetune=few_labels", "gpu.precision=bf16"],
        ["finetune=few_labels", "gpu.channels_last=false"],
        ["finetune=few_labels", "--dry-run"],
        ["finetune=few_labels", "rule=none", "rule.whitening=0.1"],
        ["finetune=few_labels", "rule=vae", "rule.whitening=0.1"],
    ):
        if not words[0].startswith("finetune="):
            words = ["finetune=backprop", *words]
        ran = command("train", *TINY, *MODELS["conv6"], "rule=swta", *words, small=False)
        assert ran.code == 0, f"{words}: {ran.err}"


@pytest.mark.slow
def test_weights_of_a_whitened_network_suit_no_other(command: Command) -> None:
    white, plain, learnt = ["rule=swta"], ["rule=hpca"], {}
    for name in ("swta", "hpca"):
        ran = command("pretrain", *TINY, *MODELS["conv6"], f"rule={name}", "finetune=backprop", small=False)
        (learnt[name],) = [path for path in ran.directories("pretrain") if f"-{name}-" in path.name]
    for words, origin in ((white, "hpca"), (plain, "swta")):
        origins = (f"init_from={learnt[origin]}", "finetune=backprop")
        ran = command("finetune", *TINY, *MODELS["conv6"], *words, *origins, small=False)
        assert_refused(ran, "whitening.matrix")
    for words, origin in ((white, "swta"), (plain, "hpca"), (["rule=none", "rule.whitening=0.1"], "swta")):
        origins = (f"init_from={learnt[origin]}", "finetune=backprop")
        ran = command("finetune", *TINY, *MODELS["conv6"], *words, *origins, small=False)
        assert ran.code == 0, ran.err
