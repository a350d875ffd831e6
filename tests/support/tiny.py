"""The settings of the smallest run that has every part."""

from __future__ import annotations

TINY = [
    "data.dataset_name=shapes",
    "data.num_samples=24",
    "data.image_size=16",
    "model.hidden_size=64",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.patch_size=4",
    "text_encoder.vocab_size=300",
    "text_encoder.num_layers=1",
    "text_encoder.max_length=24",
    "training.device=cpu",
    "training.batch_size=4",
    "training.max_steps=6",
    "training.save_steps=3",
    "training.logging_steps=1",
    "training.heldout_steps=3",
    "training.heldout_pictures=4",
    "training.preview_steps=1000",
    "training.preview_prompts=[a red circle]",
    "training.mixed_precision=no",
    "training.num_workers=0",
    "training.prefetch_factor=2",
    "training.compile_model=false",
    "training.trackers=[none]",
    "lr_scheduler.warmup_steps=2",
    "sampling.num_inference_steps=2",
]
