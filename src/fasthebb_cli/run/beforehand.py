"""Finds before anything runs what would stop a later stage, hours into a run or in one of a sweep's jobs."""

import torch

from fasthebb_cli.config import Config
from fasthebb_cli.data.dataset import Dataset
from fasthebb_cli.run.plan import PlannedStage
from fasthebb_cli.run.start import new_network
from fasthebb_cli.stage_config import EvaluateConfig, FinetuneConfig, PretrainConfig, ProbeConfig
from fasthebb_cli.stages.evaluate import images_of
from fasthebb_cli.stages.finetune import labelled
from fasthebb_cli.stages.learner import check_by_rule


def check(config: Config, dataset: Dataset, stages: list[PlannedStage]) -> None:
    """Labels, splits, and layers that are named.

    Raises:
        InputError: one of them is not there.
    """
    for stage in stages:
        settings = stage.settings
        if isinstance(settings, EvaluateConfig | ProbeConfig):
            images_of(dataset, settings)
        if isinstance(settings, FinetuneConfig | ProbeConfig) or (
            isinstance(settings, PretrainConfig) and settings.teacher
        ):
            labelled(dataset, config)
    with torch.device("meta"):
        for layer, hidden in {(stage.layer, stage.hidden) for stage in stages} - {(None, 0)}:
            new_network(config, dataset, layer, hidden)
        for stage in stages:
            if isinstance(stage.settings, FinetuneConfig) and stage.settings.by_rule:
                check_by_rule(config, stage.settings, new_network(config, dataset, stage.layer, stage.hidden))
