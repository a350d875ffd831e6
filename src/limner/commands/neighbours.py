"""Flags that people know from other trainers, as settings of this one.

From diffusers' example scripts, kohya's sd-scripts, and others (docs/terminal.md). A flag that
means a key here is understood as that key; one that asks for what is done anyway is passed over,
with a word; one that means a command, or that cannot be done, is answered.
"""

from __future__ import annotations

import json
import re

from limner.errors import LimnerError

KEYS = {
    # data
    "train_data_dir": "data.dataset_path",
    "instance_data_dir": "data.dataset_path",
    "instance_data_root": "data.dataset_path",
    "data_dir": "data.dataset_path",
    "dataset_config_name": "data.dataset_config",
    "resolution": "data.image_size",
    "max_train_samples": "data.num_samples",
    "caption_columns": "data.caption_column",
    "flip_aug": "data.horizontal_flip",
    "random_flip": "data.horizontal_flip",
    "enable_bucket": "data.buckets",
    "max_token_length": "text_encoder.max_length",
    # length and size of steps
    "train_batch_size": "training.batch_size",
    "max_train_steps": "training.max_steps",
    "max_train_epochs": "training.num_epochs",
    "num_train_epochs": "training.num_epochs",
    "lr": "training.learning_rate",
    "lr_scheduler": "lr_scheduler.type",
    "lr_warmup_steps": "lr_scheduler.warmup_steps",
    "optimizer": "optimizer.type",
    "optimizer_type": "optimizer.type",
    "adam_weight_decay": "optimizer.weight_decay",
    "adam_epsilon": "optimizer.eps",
    "clip_grad_norm": "training.max_grad_norm",
    # saving and showing
    "output_dir": "training.output_dir",
    "checkpointing_steps": "training.save_steps",
    "save_every_n_steps": "training.save_steps",
    "validation_prompt": "training.preview_prompts",
    "validation_prompts": "training.preview_prompts",
    "validation_steps": "training.preview_steps",
    "sample_every_n_steps": "training.preview_steps",
    "report_to": "training.trackers",
    "log_with": "training.trackers",
    "tracker_project_name": "training.tracker_project",
    "wandb_run_name": "training.run_name",
    # machine
    "dataloader_num_workers": "training.num_workers",
    "max_data_loader_n_workers": "training.num_workers",
    # models
    "pretrained_model_name_or_path": "training.init_from",
    "network_dim": "lora.rank",
    "lora_rank": "lora.rank",
    "network_alpha": "lora.alpha",
    "lora_alpha": "lora.alpha",
    "proportion_empty_prompts": "training.caption_dropout",
    "caption_dropout_rate": "training.caption_dropout",
    "caption_dropout_probability": "training.caption_dropout",
}
"""Other flag to key."""
SHARES = ("data.horizontal_flip",)
"""Keys that others switch on and off: as a share, half."""
LISTS = ("training.trackers", "training.preview_prompts")
"""Keys that take several values, of which others give one."""
ANSWERS = {
    "push_to_hub": "limner publish RUN --repo owner/name uploads a finished run",
    "hub_model_id": "limner publish RUN --repo owner/name uploads a finished run",
    "hub_token": "log in with `hf auth login`, then limner publish RUN --repo owner/name",
    "resume_from_checkpoint": "the same command resumes its run; --resume latest or --resume "
    "CHECKPOINT does so with changed settings",
    "snr_gamma": "noise levels are weighed by scheduler.level_balance",
    "min_snr_gamma": "noise levels are weighed by scheduler.level_balance",
    "noise_offset": "the noise schedules end in pure noise, so no offset is needed",
    "use_8bit_adam": "not supported; training.sharding=fsdp shards the optimizer over GPUs",
    "text_encoder_lr": "lora.train_text_encoder says whether it is trained",
    "vae": "vae.pretrained_model_name=FOLDER trains in its latents (configs/latents.yaml)",
    "network_module": "lora.rank=16 trains adapters of training.init_from (docs/finetuning.md)",
    "logging_dir": "the log is in training.output_dir",
    "adam_beta1": "optimizer.betas=[0.9,0.99]",
    "adam_beta2": "optimizer.betas=[0.9,0.99]",
    "config_file": "limner train FOLDER reads pictures and captions as they are, and --config FILE "
    "a YAML file (docs/reference/config.md)",
    "multidatabackend_config": "limner train FOLDER reads pictures and captions as they are",
}
"""Other flag to what to do instead."""
_ATTENTION = "attention is torch's own"
_CACHED = "latents and text embeddings are cached in cache.folder"
NOT_NEEDED = {
    "xformers": _ATTENTION,
    "sdpa": _ATTENTION,
    "mem_eff_attn": _ATTENTION,
    "enable_xformers_memory_efficient_attention": _ATTENTION,
    "cache_latents": _CACHED,
    "cache_latents_to_disk": _CACHED,
    "center_crop": "pictures are cropped to a centred square; data.buckets=auto crops less",
    "allow_tf32": "training.mixed_precision=auto takes what is fastest here",
    "caption_extension": "a .txt or .caption beside its picture is found",
}
"""Other flag to why it is passed over."""
WITH_A_VALUE = ("caption_extension",)
"""Of these."""
PRECISIONS = ("bf16", "fp16")
"""Switches, which name a value of training.mixed_precision."""
FOLDER_FLAGS = (
    *("train_data_dir", "instance_data_dir", "instance_data_root", "data_dir"),
    *("dataset_name", "dataset_path"),
)
"""Flags of `limner train` whose value is its FOLDER where there is no configuration."""
_FILES = (".toml", ".json", ".yaml", ".yml")
FIRST = (
    *("training", "data", "model", "sampling", "optimizer", "lr_scheduler", "scheduler"),
    *("text_encoder", "vae", "lora"),
)
"""Sections in the order in which a key without its section is looked for."""


def key_of(flag: str, section: str = "") -> str | None:
    """The key that a flag without a section means; None: it is not known.

    Args:
        flag: its name, without dashes in front; hyphens count as underscores.
        section: where it is looked for first.

    Raises:
        LimnerError: it is one of another program, and something else takes its place.
    """
    name = flag.replace("-", "_")
    from limner.config import known_keys

    known = set(known_keys())
    if f"{section}.{name}" in known:
        return f"{section}.{name}"
    if name in ANSWERS:
        raise LimnerError(f"--{flag} is a flag of other trainers; here: {ANSWERS[name]}")
    if name in PRECISIONS:
        return "training.mixed_precision"
    if name in KEYS:
        return KEYS[name]
    return next((f"{s}.{name}" for s in FIRST if f"{s}.{name}" in known), None)


def not_needed(flag: str) -> str | None:
    """Why a flag of another trainer is passed over; None: it is another one."""
    return NOT_NEEDED.get(flag.replace("-", "_"))


def check_not_needed(flag: str, value: str | None) -> None:
    """Raises LimnerError where its value asks for something else."""
    if flag.replace("-", "_") != "caption_extension":
        return
    if value is None or value.lower().lstrip(".") not in ("txt", "caption"):
        raise LimnerError(
            f"--{flag} {value or ''}: a caption is in a .txt or .caption file beside its picture; "
            "rename the files (docs/data.md has other layouts)"
        )


def takes_value(flag: str) -> bool:
    """Whether a flag that is not needed has a value."""
    return flag.replace("-", "_") in WITH_A_VALUE


def is_switch(key: str, flag: str = "") -> bool:
    """Whether a key may be given without a value, or a flag that means it."""
    from limner.config import Config

    if flag.replace("-", "_") in PRECISIONS:
        return True

    section, _, name = key.partition(".")
    known = Config.model_fields.get(section)
    keys = known.annotation.model_fields if known is not None else {}  # type: ignore[union-attr]
    return key in (*SHARES, "data.buckets") or (name in keys and keys[name].annotation is bool)


def as_value(key: str, value: str | None, flag: str = "") -> str:
    """A value as this key takes it; None: it was given as a switch.

    Raises:
        LimnerError: this key takes no such value, and something else takes its place.
    """
    if flag.replace("-", "_") in PRECISIONS:
        return "no" if value and value.lower() in ("false", "no", "off", "0") else flag
    if key == "data.image_size" and value is not None:
        return _one_side(value, flag)
    if key == "data.dataset_config" and value is not None and value.lower().endswith(_FILES):
        raise LimnerError(
            f"--{flag} {value}: files of other trainers are not read; limner train FOLDER reads "
            "pictures and captions as they are (docs/coming-from.md)"
        )
    if key in SHARES:
        switched = {"true": "0.5", "false": "0.0", None: "0.5"}
        return switched.get(value and value.lower(), value or "0.5")
    if key in LISTS and value is not None and not value.startswith("["):
        return json.dumps([value], ensure_ascii=False)
    return "true" if value is None else value


def _one_side(value: str, flag: str) -> str:
    """Of "512,512" or "512x512", as kohya's scripts have it, 512."""
    sides = re.fullmatch(r"(\d+)\s*[,xX]\s*(\d+)", value.strip("()[] "))
    if sides is None:
        return value
    if sides[1] != sides[2]:
        raise LimnerError(
            f"--{flag} {value}: data.image_size is the side of a square, in pixels; "
            "data.buckets=auto keeps the shapes of the pictures"
        )
    return sides[1]
