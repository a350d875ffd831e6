"""Validation across keys: values that are valid on their own, but not together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limner.config.diffusion import SamplingConfig
    from limner.config.schema import Config


MOST_PATCHES = 2**20
"""Of a picture: each attends to each, so that many more fit into no memory."""


def problems(config: Config) -> Iterator[str]:
    """Each impossible combination of a resolved configuration: its key, what is wrong, the fix."""
    yield from _model_problems(config)
    yield from _scheduler_problems(config)
    yield from sampling_problems(config)
    yield from _bucket_problems(config, config.model.patch_size or 1)
    training = config.training
    whole, accumulation = training.effective_batch_size, training.gradient_accumulation_steps
    size = 1 if training.batch_size == "auto" else training.batch_size
    if whole and whole % (size * accumulation):
        yield (
            f"training.effective_batch_size: {whole} is not a multiple of training.batch_size "
            f"({training.batch_size}) x gradient_accumulation_steps ({accumulation}); remove "
            "gradient_accumulation_steps, which is then computed"
        )
    if training.sharding != "none" and training.batch_size == "auto":
        yield (
            "training.batch_size: auto is not supported with training.sharding=fsdp, since it "
            "measures the whole model in one process; set a number (after running out of memory, "
            "the next start halves it)"
        )
    if training.sharding != "none" and training.mixed_precision == "fp16":
        yield (
            "training.mixed_precision: fp16 needs gradient scaling, which training.sharding=fsdp "
            "does not support; use bf16 or no"
        )
    if training.checkpoint_shards and training.sharding == "none":
        yield (
            "training.checkpoint_shards: only valid with training.sharding=fsdp; set both, or "
            "neither"
        )
    yield from _adapter_problems(config)
    yield from _distillation_problems(config)
    counted = training.max_steps or training.num_epochs
    if training.max_minutes and not counted and config.lr_scheduler.type in ("linear", "cosine"):
        yield (
            f"lr_scheduler.type: {config.lr_scheduler.type} decays over a known number of steps, "
            "which training.max_minutes alone does not give; use wsd or constant, or set "
            "training.max_steps or training.num_epochs"
        )


def _adapter_problems(config: Config) -> Iterator[str]:
    if config.lora.rank is None:
        keys = {"alpha", "target_modules", "train_text_encoder"}
        for key in sorted(config.lora.model_fields_set & keys):
            if getattr(config.lora, key) not in (None, True):
                yield (
                    f"lora.{key}: has no effect without lora.rank; set lora.rank, or remove "
                    "this key"
                )
        return
    if config.training.init_from is None:
        yield (
            "lora.rank: adapters need a base model; set training.init_from to its run folder, "
            "checkpoint, or exported file"
        )
    if config.training.sharding != "none":
        yield "training.sharding: adapters (lora.rank) cannot be sharded; set it to none"
    if config.optimizer.type != "adamw":
        yield (
            f"optimizer.type: {config.optimizer.type}, but adapters (lora.rank) are trained with "
            "AdamW; remove this key and training.learning_rate (whose default depends on it), or "
            "set adamw"
        )


def _distillation_problems(config: Config) -> Iterator[str]:
    if not config.model.flow_map:
        for key in sorted(config.distill.model_fields_set):
            if getattr(config.distill, key) != type(config.distill).model_fields[key].default:
                yield (
                    f"distill.{key}: has no effect without model.flow_map; use limner distill, or "
                    "remove this key"
                )
        return
    if config.data.buckets is not None:
        yield "data.buckets: not supported with model.flow_map yet; set it to null"
    if config.distill.num_inference_steps % 4:
        yield (
            f"distill.num_inference_steps: {config.distill.num_inference_steps} is not a multiple "
            "of 4, which drawing in 1, 2, and 4 steps is learned from"
        )
    low, high = config.distill.guidance_range or (0.0, 1.0)
    if low >= high:
        yield (
            f"distill.guidance_scale: the first of [{low:g}, {high:g}] must be below the second; "
            "use a single number to fix the guidance"
        )
    if config.training.batch_size == "auto":
        yield "training.batch_size: auto is not supported with model.flow_map yet; set a number"
    if config.lora.rank is not None:
        yield "lora.rank: not supported with model.flow_map, where all weights learn; remove it"
    if config.training.sharding != "none":
        yield "training.sharding: not supported with model.flow_map yet; set it to none"


def _model_problems(config: Config) -> Iterator[str]:
    data, model = config.data, config.model
    head_dim = model.attention_head_dim
    if head_dim is not None and head_dim * model.num_heads != model.hidden_size:
        yield (
            f"model.attention_head_dim: {model.num_heads} heads (model.num_heads) of width "
            f"{head_dim} make {model.num_heads * head_dim}, but model.hidden_size is "
            f"{model.hidden_size}; remove one of the three, which is then computed from the other "
            "two"
        )
    if model.hidden_size % model.num_heads:
        fits = [h for h in range(1, model.hidden_size + 1) if model.hidden_size % h == 0]
        near = sorted(fits, key=lambda h: abs(h - model.num_heads))[:2]
        yield (
            f"model.num_heads: model.hidden_size {model.hidden_size} is not divisible by "
            f"{model.num_heads} heads; use {' or '.join(map(str, near))}"
        )
    elif model.architecture == "modern" and model.hidden_size // model.num_heads % 4:
        yield (
            f"model.num_heads: a head of width {model.hidden_size // model.num_heads} is not "
            "divisible by 4, as 2D rotary position embeddings require; change num_heads"
        )
    elif model.architecture == "dit" and model.hidden_size % 4:
        yield "model.hidden_size: must be divisible by 4 for sine-cosine position embeddings"
    patch = model.patch_size or 1
    if config.vae.pretrained_model_name is not None:
        return  # the autoencoder decides what fits: see `misfits`
    yield from _too_many_patches(data.image_size, patch)
    if data.image_size % patch:
        lower = data.image_size // patch * patch
        yield (
            f"data.image_size: {data.image_size} is not divisible by model.patch_size {patch}; use "
            f"{lower or patch} or {lower + patch}"
        )
    if model.in_channels != 3:
        yield (
            f"model.in_channels: {model.in_channels}, but pictures in pixel space have 3; set it "
            "to 3, remove it, or set vae.pretrained_model_name to an autoencoder"
        )
    yield from _other_channels_out(config)


def _bucket_problems(config: Config, unit: int) -> Iterator[str]:
    """Of sizes that were named: sides of whole patches, and no more pixels than a square has."""
    buckets, area = config.data.buckets, config.data.image_size**2
    if buckets is None or buckets == "auto":
        return
    if not buckets:
        yield "data.buckets: the list is empty; remove it, or use auto"
    for height, width in buckets:
        if height % unit or width % unit:
            yield (
                f"data.buckets: {height} x {width} is not divisible by {unit}, the model's patch "
                "in pixels; use auto, or other sizes"
            )
        elif height * width > area:
            yield (
                f"data.buckets: {height} x {width} has more pixels than data.image_size "
                f"{config.data.image_size} squared, which the memory estimate is based on; use "
                "smaller sizes, or a larger image_size"
            )


def _too_many_patches(side: int, pixels: int) -> Iterator[str]:
    """Of a picture this large, whose patches are so many pixels wide."""
    if (side // pixels) ** 2 > MOST_PATCHES:
        yield (
            f"data.image_size: {side} pixels in patches of {pixels} make {(side // pixels) ** 2:,} "
            f"patches, more than the maximum of {MOST_PATCHES:,}; use a larger model.patch_size, "
            "or smaller pictures"
        )


def _other_channels_out(config: Config) -> Iterator[str]:
    model = config.model
    if model.out_channels != model.in_channels:
        yield (
            f"model.out_channels: {model.out_channels} must equal model.in_channels "
            f"{model.in_channels}; remove it"
        )


def misfits(config: Config, channels: int, downsampling: int) -> Iterator[str]:
    """What of a completed configuration does not fit its autoencoder's latents."""
    name = config.vae.pretrained_model_name
    if name is None:
        return
    size, model = config.data.image_size, config.model
    whole = downsampling * (model.patch_size or 1)
    yield from _too_many_patches(size, whole)
    if size % whole:
        lower = size // whole * whole
        yield (
            f"data.image_size: {size} is not divisible by {whole}, the downsampling of {name} "
            f"({downsampling}) x model.patch_size ({model.patch_size}); use {lower or whole} or "
            f"{lower + whole}"
        )
    yield from _bucket_problems(config, whole)
    if model.in_channels != channels:
        yield (
            f"model.in_channels: {model.in_channels}, but the latents of {name} have {channels}; "
            f"set it to {channels}, or remove it"
        )
    yield from _other_channels_out(config)


def _scheduler_problems(config: Config) -> Iterator[str]:
    scheduler = config.scheduler
    betas = ("beta_start", "beta_end", "beta_schedule")
    if scheduler.objective == "flow_matching":
        for key in betas:
            if getattr(scheduler, key) is not None:
                yield (
                    f"scheduler.{key}: only valid with scheduler.objective=diffusion, but that is "
                    "flow_matching; remove one of the two"
                )
        if scheduler.prediction_type == "v_prediction":
            yield (
                "scheduler.prediction_type: v_prediction is only valid with "
                "scheduler.objective=diffusion; flow_matching supports velocity, sample, and "
                "epsilon"
            )
        return
    if scheduler.prediction_type == "velocity":
        yield (
            "scheduler.prediction_type: velocity is only valid with "
            "scheduler.objective=flow_matching; diffusion supports epsilon, v_prediction, and "
            "sample"
        )
    for key in ("logit_mean", "logit_mean_end"):
        if getattr(scheduler, key) is not None:
            yield f"scheduler.{key}: only valid with scheduler.objective=flow_matching; remove it"
    start, end = scheduler.beta_start, scheduler.beta_end
    if start and end and start >= end:
        yield f"scheduler.beta_start: {start:g} must be below scheduler.beta_end {end:g}"


def sampling_problems(config: Config) -> Iterator[str]:
    """Those of the `sampling` section, which can be changed after training."""
    scheduler, sampling = config.scheduler, config.sampling
    if config.model.flow_map:
        if sampling.scheduler_type not in ("ddim", "euler"):
            yield (
                f"sampling.scheduler_type: {sampling.scheduler_type}, but a distilled model takes "
                "steps of its own; use ddim, or the model it was made from"
            )
        if (known := config.distill.guidance_range) is not None:
            yield from _known_guidance_problems(sampling, *known)
        elif sampling.guidance_scale != 1:
            yield (
                f"sampling.guidance_scale: {sampling.guidance_scale:g}, but the guidance of a "
                "distilled model was fixed when it was made; leave it at 1, or use the model it "
                "was made from"
            )
        if sampling.zero_init_steps:
            yield "sampling.zero_init_steps: not supported by a distilled model; leave it at 0"
    if sampling.guidance_interval[0] >= sampling.guidance_interval[1]:
        yield "sampling.guidance_interval: the first must be below the second, as in [0.1, 0.9]"
    if sampling.zero_init_steps >= sampling.num_inference_steps:
        yield (
            f"sampling.zero_init_steps: {sampling.zero_init_steps} must be below "
            f"sampling.num_inference_steps {sampling.num_inference_steps}; use fewer"
        )
    if scheduler.objective == "flow_matching":
        return
    if sampling.guidance_type == "cfg_zero_star":
        yield (
            "sampling.guidance_type: cfg_zero_star is only valid with "
            "scheduler.objective=flow_matching; diffusion supports cfg and apg"
        )
    if sampling.zero_init_steps:
        yield (
            "sampling.zero_init_steps: only valid with scheduler.objective=flow_matching; leave it "
            "at 0"
        )
    if sampling.shift != 1:
        yield (
            f"sampling.shift: {sampling.shift:g}, but a beta schedule cannot be shifted; leave it "
            "at 1, or set scheduler.objective=flow_matching"
        )
    if sampling.timestep_power != 1:
        yield (
            f"sampling.timestep_power: {sampling.timestep_power:g}, but a beta schedule has fixed "
            "timesteps; leave it at 1, or set scheduler.objective=flow_matching"
        )
    if sampling.num_inference_steps > scheduler.num_train_timesteps:
        yield (
            f"sampling.num_inference_steps: {sampling.num_inference_steps} is more than "
            f"scheduler.num_train_timesteps {scheduler.num_train_timesteps}; use fewer"
        )


def _known_guidance_problems(sampling: SamplingConfig, low: float, high: float) -> Iterator[str]:
    """Of a distilled model whose guidance scale is a setting."""
    if low < high and not low <= sampling.guidance_scale <= high:
        yield (
            f"sampling.guidance_scale: {sampling.guidance_scale:g}, but this model was distilled "
            f"for guidance scales from {low:g} to {high:g}; use one of these, or the model it was "
            "made from"
        )
    usual = type(sampling).model_fields
    for key in ("guidance_interval", "guidance_type", "guidance_rescale"):
        if getattr(sampling, key) != usual[key].default:
            yield (
                f"sampling.{key}: of a distilled model it was fixed when it was made; remove it, "
                "or use the model it was made from"
            )
