"""The whole configuration: its sections, saved with a run and inside each of its checkpoints."""

from __future__ import annotations

import yaml

from limner.config.data import CacheConfig, DataConfig
from limner.config.diffusion import SamplingConfig, SchedulerConfig
from limner.config.distill import DistillConfig
from limner.config.evaluation import EvaluationConfig
from limner.config.lora import LoraConfig
from limner.config.model import AutoencoderConfig, ModelConfig, TextEncoderConfig, VaeConfig
from limner.config.training import LrSchedulerConfig, OptimizerConfig, TrainingConfig
from limner.config.types import Section


class Config(Section):
    """The complete configuration. Create it with `load_config`, which validates all keys
    together."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    vae: VaeConfig = VaeConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    training: TrainingConfig = TrainingConfig()
    lora: LoraConfig = LoraConfig()
    distill: DistillConfig = DistillConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lr_scheduler: LrSchedulerConfig = LrSchedulerConfig()
    sampling: SamplingConfig = SamplingConfig()
    cache: CacheConfig = CacheConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def known_keys() -> list[str]:
    """Every key, as `section.key`."""
    return [
        f"{section}.{key}"
        for section, field in Config.model_fields.items()
        for key in field.annotation.model_fields  # type: ignore[union-attr]
    ]
