"""Validation across keys: values that are valid on their own, but not together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
            f"training.effective_batch_size: {whole} pictures are no whole number of times "
            f"training.batch_size {training.batch_size} x gradient_accumulation_steps "
            f"{accumulation}; leave gradient_accumulation_steps out, it follows"
        )
    if training.sharding != "none" and training.batch_size == "auto":
        yield (
            "training.batch_size: auto measures a whole model in one process, and "
            "training.sharding is set to fsdp; take a number (memory that runs out halves it at "
            "the next start)"
        )
    if training.sharding != "none" and training.mixed_precision == "fp16":
        yield (
            "training.mixed_precision: fp16 scales gradients, which training.sharding fsdp does "
            "not do; take bf16 or no"
        )
    if training.checkpoint_shards and training.sharding == "none":
        yield "training.checkpoint_shards: belongs to training.sharding fsdp; set both, or neither"
    yield from _adapter_problems(config)
    counted = training.max_steps or training.num_epochs
    if training.max_minutes and not counted and config.lr_scheduler.type in ("linear", "cosine"):
        yield (
            f"lr_scheduler.type: {config.lr_scheduler.type} falls over a known number of steps, "
            "and training.max_minutes alone does not say how many there will be; take wsd or "
            "constant, or set training.max_steps or training.num_epochs"
        )


def _adapter_problems(config: Config) -> Iterator[str]:
    if config.lora.rank is None:
        keys = {"alpha", "target_modules", "train_text_encoder"}
        for key in sorted(config.lora.model_fields_set & keys):
            if getattr(config.lora, key) not in (None, True):
                yield f"lora.{key}: says nothing without lora.rank; set that, or leave it out"
        return
    if config.training.init_from is None:
        yield (
            "lora.rank: adapters need a model that they adapt; name its run folder, checkpoint, or "
            "exported file in training.init_from"
        )
    if config.training.sharding != "none":
        yield "training.sharding: adapters (lora.rank) are not split over processes; set it to none"
    if config.optimizer.type != "adamw":
        yield (
            f"optimizer.type: {config.optimizer.type}, but adapters (lora.rank) learn with AdamW; "
            "leave it out (and training.learning_rate, which is another one), or set adamw"
        )


def _model_problems(config: Config) -> Iterator[str]:
    data, model = config.data, config.model
    head_dim = model.attention_head_dim
    if head_dim is not None and head_dim * model.num_heads != model.hidden_size:
        yield (
            f"model.attention_head_dim: {model.num_heads} heads (model.num_heads) of {head_dim} "
            f"are {model.num_heads * head_dim} wide, and model.hidden_size is "
            f"{model.hidden_size}; leave one of the three out, it follows from the others"
        )
    if model.hidden_size % model.num_heads:
        fits = [h for h in range(1, model.hidden_size + 1) if model.hidden_size % h == 0]
        near = sorted(fits, key=lambda h: abs(h - model.num_heads))[:2]
        yield (
            f"model.num_heads: {model.num_heads} heads do not divide model.hidden_size "
            f"{model.hidden_size}; take {' or '.join(map(str, near))}"
        )
    elif model.architecture == "modern" and model.hidden_size // model.num_heads % 4:
        yield (
            f"model.num_heads: a head of width {model.hidden_size // model.num_heads} is not "
            "divisible by 4, which rotary positions in two dimensions need; change num_heads"
        )
    elif model.architecture == "dit" and model.hidden_size % 4:
        yield "model.hidden_size: must be divisible by 4 for sine-cosine positions"
    patch = model.patch_size or 1
    if config.vae.pretrained_model_name is not None:
        return  # the autoencoder decides what fits: see `misfits`
    yield from _too_many_patches(data.image_size, patch)
    if data.image_size % patch:
        lower = data.image_size // patch * patch
        yield (
            f"data.image_size: {data.image_size} is not divisible by model.patch_size {patch}; "
            f"take {lower or patch} or {lower + patch}"
        )
    if model.in_channels != 3:
        yield (
            f"model.in_channels: {model.in_channels}, but pictures in pixel space have 3; set 3 "
            "or leave it out, or name an autoencoder in vae.pretrained_model_name"
        )
    yield from _other_channels_out(config)


def _bucket_problems(config: Config, unit: int) -> Iterator[str]:
    """Of sizes that were named: sides of whole patches, and no more pixels than a square has."""
    buckets, area = config.data.buckets, config.data.image_size**2
    if buckets is None or buckets == "auto":
        return
    if not buckets:
        yield "data.buckets: an empty list holds no size; leave it out, or take auto"
    for height, width in buckets:
        if height % unit or width % unit:
            yield (
                f"data.buckets: {height} x {width} is not divisible by {unit}, the pixels of one "
                "patch of the model; take auto, or other sizes"
            )
        elif height * width > area:
            yield (
                f"data.buckets: {height} x {width} has more pixels than data.image_size "
                f"{config.data.image_size} squared, which memory is estimated by; take smaller "
                "sizes, or a larger image_size"
            )


def _too_many_patches(side: int, pixels: int) -> Iterator[str]:
    """Of a picture this large, whose patches are so many pixels wide."""
    if (side // pixels) ** 2 > MOST_PATCHES:
        yield (
            f"data.image_size: {side} pixels in patches of {pixels} are {(side // pixels) ** 2:,}, "
            f"and a model sees {MOST_PATCHES:,} at most; take a larger model.patch_size, or "
            "smaller pictures"
        )


def _other_channels_out(config: Config) -> Iterator[str]:
    model = config.model
    if model.out_channels != model.in_channels:
        yield (
            f"model.out_channels: {model.out_channels} must equal model.in_channels "
            f"{model.in_channels}; leave it out"
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
            f"data.image_size: {size} is not divisible by {whole}, the {downsampling} times that "
            f"{name} makes pictures smaller times model.patch_size {model.patch_size}; take "
            f"{lower or whole} or {lower + whole}"
        )
    yield from _bucket_problems(config, whole)
    if model.in_channels != channels:
        yield (
            f"model.in_channels: {model.in_channels}, but the latents of {name} have {channels}; "
            f"set {channels} or leave it out"
        )
    yield from _other_channels_out(config)


def _scheduler_problems(config: Config) -> Iterator[str]:
    scheduler = config.scheduler
    betas = ("beta_start", "beta_end", "beta_schedule")
    if scheduler.objective == "flow_matching":
        for key in betas:
            if getattr(scheduler, key) is not None:
                yield (
                    f"scheduler.{key}: belongs to scheduler.objective diffusion, and it is set to "
                    "flow_matching; leave one of the two out"
                )
        if scheduler.prediction_type == "v_prediction":
            yield (
                "scheduler.prediction_type: v_prediction belongs to scheduler.objective diffusion; "
                "flow matching has velocity, sample, or epsilon"
            )
        return
    if scheduler.prediction_type == "velocity":
        yield (
            "scheduler.prediction_type: velocity belongs to scheduler.objective flow_matching; "
            "diffusion has epsilon, v_prediction, or sample"
        )
    for key in ("logit_mean", "logit_mean_end"):
        if getattr(scheduler, key) is not None:
            yield f"scheduler.{key}: belongs to scheduler.objective flow_matching; leave it out"
    start, end = scheduler.beta_start, scheduler.beta_end
    if start and end and start >= end:
        yield f"scheduler.beta_start: {start:g} must be below scheduler.beta_end {end:g}"


def sampling_problems(config: Config) -> Iterator[str]:
    """Those of the `sampling` section, which can be changed after training."""
    scheduler, sampling = config.scheduler, config.sampling
    if sampling.guidance_interval[0] >= sampling.guidance_interval[1]:
        yield "sampling.guidance_interval: the first must be below the second, as in [0.1, 0.9]"
    if sampling.zero_init_steps >= sampling.num_inference_steps:
        yield (
            f"sampling.zero_init_steps: {sampling.zero_init_steps} of sampling.num_inference_steps "
            f"{sampling.num_inference_steps} leave none to draw in; take fewer"
        )
    if scheduler.objective == "flow_matching":
        return
    if sampling.guidance_type == "cfg_zero_star":
        yield (
            "sampling.guidance_type: cfg_zero_star belongs to scheduler.objective flow_matching; "
            "diffusion has cfg and apg"
        )
    if sampling.zero_init_steps:
        yield (
            "sampling.zero_init_steps: belongs to scheduler.objective flow_matching; leave it at 0"
        )
    if sampling.shift != 1:
        yield (
            f"sampling.shift: {sampling.shift:g}, but a schedule of betas cannot be shifted; "
            "leave it at 1, or set scheduler.objective to flow_matching"
        )
    if sampling.timestep_power != 1:
        yield (
            f"sampling.timestep_power: {sampling.timestep_power:g}, but a schedule of betas has "
            "times of its own; leave it at 1, or set scheduler.objective to flow_matching"
        )
    if sampling.num_inference_steps > scheduler.num_train_timesteps:
        yield (
            f"sampling.num_inference_steps: {sampling.num_inference_steps} is more than "
            f"scheduler.num_train_timesteps {scheduler.num_train_timesteps}; take fewer"
        )
