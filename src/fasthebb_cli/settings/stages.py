"""The kinds of stage, each with its settings, and the verbs, which are rows of them."""

from fasthebb_cli.settings.evaluate import EvaluateConfig
from fasthebb_cli.settings.finetune import FinetuneConfig
from fasthebb_cli.settings.pretrain import PretrainConfig
from fasthebb_cli.settings.probe import ProbeConfig

StageConfig = PretrainConfig | FinetuneConfig | ProbeConfig | EvaluateConfig
KINDS: dict[str, type[StageConfig]] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "probe": ProbeConfig,
    "evaluate": EvaluateConfig,
}
MEASURING = ("probe", "evaluate")  # kinds that leave the weights as they are
VERBS: dict[str, list[str]] = {  # a verb is only a default for `stages`
    "train": ["pretrain", "finetune", "evaluate"],
    "pretrain": ["pretrain"],
    "finetune": ["finetune"],
    "probe": ["probe"],
    "evaluate": ["evaluate"],
}
