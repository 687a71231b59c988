"""The kinds of stage, each with its settings, and the stages that a verb runs by default.

`VERBS` in cli/verbs.py lists all verbs with what they call; here are those that run stages.
"""

from fasthebb_cli.settings.closed_form import ClosedFormConfig, ComponentsConfig
from fasthebb_cli.settings.evaluate import EvaluateConfig
from fasthebb_cli.settings.finetune import FinetuneConfig
from fasthebb_cli.settings.kind import StageSettings
from fasthebb_cli.settings.pretrain import PretrainConfig
from fasthebb_cli.settings.probe import ProbeConfig

KINDS: dict[str, type[StageSettings]] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "probe": ProbeConfig,
    "evaluate": EvaluateConfig,
    "closed_form": ClosedFormConfig,
}
# Kinds that no configuration names: another stage needs them, and its settings say how
NEEDED_KINDS: dict[str, type[StageSettings]] = {"components": ComponentsConfig}
ALL_KINDS = KINDS | NEEDED_KINDS
# Folder of conf/ -> the kinds of stage that its files set up, the usual one first
STAGE_GROUPS = {
    "pretrain": ("pretrain",),
    "finetune": ("finetune", "closed_form"),
    "probe": ("probe",),
    "evaluate": ("evaluate",),
}
# Verb -> the default of `stages`; every group is such a verb
STAGES_OF_VERB: dict[str, list[str]] = {
    "train": ["pretrain", "finetune", "evaluate"],
    **{name: [name] for name in STAGE_GROUPS},
}
