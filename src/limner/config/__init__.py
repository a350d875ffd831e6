"""All settings, with type, default, unit, and validation.

One file per part: data, model, training, diffusion, evaluation. Defaults are defined there, and
derived defaults in `defaults`. `loading` reads and validates the complete configuration.
"""

from limner.config.data import CacheConfig, DataConfig
from limner.config.diffusion import SamplingConfig, SchedulerConfig
from limner.config.evaluation import EvaluationConfig
from limner.config.loading import complete, load_config
from limner.config.lora import LoraConfig
from limner.config.model import AutoencoderConfig, ModelConfig, TextEncoderConfig, VaeConfig
from limner.config.schema import Config, known_keys
from limner.config.training import LrSchedulerConfig, OptimizerConfig, TrainingConfig

__all__ = [
    "AutoencoderConfig",
    "CacheConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "LoraConfig",
    "LrSchedulerConfig",
    "ModelConfig",
    "OptimizerConfig",
    "SamplingConfig",
    "SchedulerConfig",
    "TextEncoderConfig",
    "TrainingConfig",
    "VaeConfig",
    "complete",
    "known_keys",
    "load_config",
]
