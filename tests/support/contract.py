"""The keys that people already have in their YAML files, and which tests show what each does."""

import re
from collections.abc import Callable
from typing import Any

CONTRACT = """
`data.dataset_name`, `data.dataset_path`, `data.image_size`, `data.num_samples`, `data.train_split`;
`model.hidden_size`, `num_layers`, `num_heads`, `patch_size`, `in_channels`, `out_channels`,
`attention_head_dim`, `mlp_ratio`, `dropout`, `activation_fn`, `norm_eps`, `attention_bias`;
`vae.pretrained_model_name`, `vae.use_slicing`, `vae.use_tiling`;
`text_encoder.pretrained_model_name`, `text_encoder.max_length`;
`training.output_dir`, `seed`, `batch_size`, `gradient_accumulation_steps`, `learning_rate`,
`num_epochs`, `save_steps`, `save_every_n_epochs`, `logging_steps`,
`mixed_precision`, `max_grad_norm`, `use_ema`, `ema_decay`,
`num_workers`, `prefetch_factor`, `compile_model`;
`scheduler.num_train_timesteps`, `beta_start`, `beta_end`, `beta_schedule`, `prediction_type`;
`optimizer.type`, `weight_decay`, `betas`; `lr_scheduler.type`, `warmup_steps`.
"""

TUTORIAL = """
data:
  dataset_name: null
  dataset_path: ./data
  image_size: 64
  num_samples: 10000
  train_split: 0.9
model:
  hidden_size: 384
  num_layers: 8
  num_heads: 6
  patch_size: 4
  in_channels: 3
  out_channels: 3
  attention_head_dim: 64
  mlp_ratio: 4.0
  dropout: 0.1
  activation_fn: gelu-approximate
  norm_eps: 1e-5
  attention_bias: true
vae:
  pretrained_model_name: null
  use_slicing: true
  use_tiling: false
text_encoder:
  pretrained_model_name: null
  max_length: 77
training:
  output_dir: ./outputs
  seed: 42
  batch_size: 4
  gradient_accumulation_steps: 4
  learning_rate: 1e-4
  num_epochs: 100
  save_steps: 1000
  save_every_n_epochs: 10
  logging_steps: 100
  mixed_precision: no
  max_grad_norm: 1.0
  use_ema: true
  ema_decay: 0.9999
  num_workers: 2
  prefetch_factor: 2
  compile_model: false
scheduler:
  num_train_timesteps: 1000
  beta_start: 0.0001
  beta_end: 0.02
  beta_schedule: linear
  prediction_type: epsilon
optimizer:
  type: AdamW
  weight_decay: 0.01
  betas: [0.9, 0.999]
lr_scheduler:
  type: cosine
  warmup_steps: 500
"""

SHOWN: dict[str, list[str]] = {}
"""Key -> the tests below that show its effect."""


def shows(*keys: str) -> Callable[[Any], Any]:
    def mark(test: Any) -> Any:
        for key in keys:
            SHOWN.setdefault(key, []).append(test.__name__)
        return test

    return mark


def contract_keys() -> list[str]:
    """`section.key` of each name in the contract; a name alone is in the section before it."""
    keys, section = [], ""
    for name in re.findall(r"`([\w.]+)`", CONTRACT):
        section = name.partition(".")[0] if "." in name else section
        keys.append(name if "." in name else f"{section}.{name}")
    return keys
