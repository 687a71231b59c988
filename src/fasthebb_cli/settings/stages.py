"""The kinds of stage, each with its settings, and the verbs, each with the stages that it runs."""

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
}
# A verb is the default of `stages`; every kind is one
VERBS: dict[str, list[str]] = {"train": ["pretrain", "finetune", "evaluate"]} | {kind: [kind] for kind in KINDS}
