"""Every setting: its type, default, unit, and check.

Defaults live here, and those that follow from other values in config_choices.

A configuration comes from YAML files and `section.key=value` overrides, is validated as a whole,
and is saved resolved (no value left to be chosen) with the run and inside each checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from limner.config_checks import misfits, problems
from limner.config_choices import changed, fit_model, resolve
from limner.config_errors import explain, sentence
from limner.config_types import (
    BelowOne,
    Beta,
    Count,
    NonNegative,
    Number,
    Positive,
    PositiveInt,
    PositiveShare,
    Section,
    Seed,
    Share,
    Whole,
    lower,
    yaml_no,
)
from limner.errors import LimnerError


class DataConfig(Section):
    dataset_name: str | None = None
    """`emoji` or `shapes` (built in); None: the folder at `dataset_path`."""
    dataset_path: str = "./data"
    """Folder with metadata.json, metadata.jsonl, or picture + .txt pairs."""
    image_size: PositiveInt = 64
    """Side of the square training picture, pixels."""
    num_samples: PositiveInt | None = None
    """Use at most this many rows (a stable choice by hash); None: all."""
    train_split: PositiveShare = 0.95
    """Share of rows trained on, by a hash of each row's key; the rest is held out.
    `emoji` and `shapes` have a split of their own and ignore it."""
    subset: Literal["demo", "all"] = "all"
    """Of `emoji`: about 330 pictures for the demo, or all of them."""
    languages: tuple[str, ...] = ("en", "zh")
    """Of `emoji`: the languages of the names."""
    check_pictures: bool = True
    """Decode every picture of a folder once before the first step (of many pictures, only those
    that are new: `cache.folder` remembers), so that bad ones change the order of none. false: bad
    ones are found on the way, and the next in the list stands in."""
    refused_limit: Share = 0.5
    """The run ends when more than this share of the rows cannot be used; they are listed."""
    main_caption_share: Share = 0.5
    """How often a row of several captions is trained with its first; the others share the rest."""
    memory_mb: Count = 512
    """Keep decoded pictures in shared memory if all fit in so many MiB; else decode each time."""
    horizontal_flip: Share = 0.0
    """Share of pictures mirrored in training. 0 by default: captions say left and right."""


class ModelConfig(Section):
    architecture: Annotated[Literal["modern", "dit"], BeforeValidator(lower)] = "modern"
    """`modern` (RMSNorm, rotary positions, SwiGLU, attends to text tokens) or `dit` (Peebles &
    Xie 2022 as published: adaLN-Zero, the text as one vector)."""
    hidden_size: PositiveInt = 384
    """Width of the transformer."""
    num_layers: PositiveInt = 8
    """Transformer blocks."""
    num_heads: PositiveInt = 6
    """Attention heads; they divide `hidden_size` between them."""
    patch_size: PositiveInt | None = None
    """Side of a patch in pixels (or latents); None: the one that gives 16 x 16 tokens."""
    in_channels: PositiveInt | None = None
    """Channels of what is denoised; None: 3, the colours of a picture."""
    out_channels: PositiveInt | None = None
    """Channels predicted; None: as many as `in_channels`."""
    mlp_ratio: Positive = 4.0
    """Width of the feed-forward part over `hidden_size` (SwiGLU takes 2/3 of it: equal cost)."""
    dropout: BelowOne = 0.0
    """Dropout after attention and feed-forward; helps when pictures are few and passes many."""


class VaeConfig(Section):
    pretrained_model_name: str | None = None
    """Autoencoder for latent space; None: pixel space."""
    use_slicing: bool = False
    """Encode and decode one picture at a time to save memory; the pictures are the same."""
    use_tiling: bool = False
    """Work on big pictures strip by strip to save device memory; the pictures are the same."""
    fingerprint: str | None = None
    """Hash of its weights. A checkpoint's configuration holds it, and other weights are refused."""


class TextEncoderConfig(Section):
    pretrained_model_name: str | None = None
    """Pretrained text encoder; None: the built-in one, trained together with the model."""
    vocab_size: Annotated[Whole, Field(ge=300)] = 4096
    """Byte-level BPE tokens learned from the captions, at most (256 of them are the bytes)."""
    hidden_size: PositiveInt | None = None
    """Width of the built-in encoder; None: that of the model, at most 384."""
    num_layers: PositiveInt = 2
    """Transformer blocks of the built-in encoder."""
    max_length: PositiveInt | None = None
    """Tokens per caption; longer ones are cut, and counted at the start of the run. None: 32, or
    for a pretrained encoder 128 and at most what it can read (CLIP: 77)."""
    fingerprint: str | None = None
    """Hash of a pretrained one's weights, kept and checked as that of the autoencoder is."""


class TrainingConfig(Section):
    output_dir: str = "./outputs"
    """The run's folder: checkpoints, log, previews, report."""
    seed: Seed = 0
    """Of everything random: first weights, order, captions, noise, noise levels, dropout."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """`auto`: CUDA, then Apple's GPU, then the processor."""
    batch_size: Literal["auto"] | PositiveInt = 32
    """Pictures per forward pass (micro-batch) and process. `auto`: the largest power of two that
    fits into 90 % of the free memory, and into `effective_batch_size` (256 without it)."""
    gradient_accumulation_steps: PositiveInt = 1
    """Forward passes per update."""
    effective_batch_size: PositiveInt | None = None
    """Pictures per update, over all processes and forward passes: `gradient_accumulation_steps`
    follows from it, so that a run learns the same whatever machine it is on."""
    learning_rate: Positive | None = None
    """Peak learning rate: Muon's update is scaled to AdamW's size. None: 4e-3 with Muon and 1e-3
    with AdamW, times the root of 256 / hidden_size in wider models."""
    num_epochs: Positive | None = None
    """Passes over the training pictures."""
    max_steps: PositiveInt | None = None
    """Updates; wins over `num_epochs`."""
    max_minutes: Positive | None = None
    """Wall-clock bound. With lr_scheduler `wsd` the decay begins in time to end within it."""
    resume: Annotated[Literal["auto", "no"], BeforeValidator(yaml_no)] = "auto"
    """`auto`: where output_dir holds a run of this configuration, the run goes on; of another one,
    that is an error. `no`: any earlier run there is an error. (`--resume` is asked first.)"""
    save_steps: PositiveInt = 1000
    """A checkpoint every so many updates, and at the end."""
    checkpoints_total_limit: PositiveInt | None = 3
    """Older checkpoints beyond this many are deleted after a new one is safe; None: keep all."""
    keep_best: bool = True
    """A checkpoint whenever the held-out loss is the lowest so far, too; the best one stays."""
    save_errors: Literal["continue", "stop"] = "continue"
    """When a checkpoint cannot be written (a full disk, ...): `continue` with the last good one and
    try again at the next save, or `stop`. At the end of the run it is an error either way."""
    logging_steps: PositiveInt = 10
    """Training loss, gradient norm, and speed every so many updates, as means over them."""
    heldout_steps: PositiveInt = 250
    """Held-out loss every so many updates."""
    heldout_pictures: PositiveInt = 64
    """How many held-out (and as many trained) pictures the held-out loss looks at."""
    preview_steps: PositiveInt = 500
    """Preview pictures every so many updates."""
    preview_prompts: tuple[str, ...] | None = None
    """None: eight captions, half of them held out."""
    mixed_precision: Annotated[Literal["auto", "no", "fp16", "bf16"], BeforeValidator(yaml_no)] = (
        "auto"
    )
    """`auto`: bf16 where the processor computes it in hardware, else none."""
    max_grad_norm: Positive = 1.0
    """The gradient is scaled down to this L2 norm where it is longer."""
    caption_dropout: Share = 0.1
    """Share of pictures trained with an empty caption, for classifier-free guidance."""
    use_ema: bool = True
    """Keep an average of the weights over time, and draw with it."""
    ema_decay: BelowOne = 0.9999
    """BelowOne per update of the averaged weights, once the run is long enough for it."""
    ema_ramp: Positive = 0.05
    """The average's half-life is at most this share of the pictures seen so far (EDM's warm-up)."""
    num_workers: Count = 2
    """Processes that load pictures; 0: the training process does."""
    prefetch_factor: PositiveInt = 4
    """Batches each of them keeps ready."""
    gradient_checkpointing: bool = False
    """Compute the blocks' activations again in the backward pass instead of keeping them: less
    memory, about a third more time (`limner estimate` says when it is needed)."""
    compile_model: bool = True
    """torch.compile the transformer blocks where a compiler is at hand."""
    trackers: tuple[Literal["tensorboard", "none"], ...] = ("tensorboard",)
    """Where figures go besides log.jsonl."""

    @property
    def micro_batch_size(self) -> int:
        """`batch_size` as a number, once training/batch_size.py has settled what is `auto`."""
        assert self.batch_size != "auto"
        return self.batch_size


class SchedulerConfig(Section):
    objective: Literal["flow_matching", "diffusion"] | None = None
    """How noise is added. None: `diffusion` if a beta or a diffusion-only prediction is given,
    else `flow_matching`."""
    num_train_timesteps: Annotated[Whole, Field(ge=2)] = 1000
    """The timestep of pure noise; 0 is the clean picture."""
    prediction_type: (
        Annotated[Literal["sample", "epsilon", "v_prediction", "velocity"], BeforeValidator(lower)]
        | None
    ) = None
    """What the network predicts. None: `velocity` (flow matching) or `epsilon` (diffusion)."""
    beta_start: Beta | None = None
    """Variance of the noise that the first timestep adds."""
    beta_end: Beta | None = None
    """Variance of the noise that the last timestep adds."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] | None = None
    """Of the `diffusion` objective; None: 1e-4 to 0.02, linear (Ho et al. 2020)."""
    logit_mean: Number | None = None
    """Flow matching trains at times with logit(cleanness) ~ N(mean, std): below 0 mostly on noisy
    pictures, where what is where is decided. None: -1."""
    logit_mean_end: Number | None = None
    """As the learning rate falls, the mean moves here: first what is where, then fine texture.
    None: 2, or `logit_mean` if that was set."""
    logit_std: Positive = 1.0
    """Spread of these times."""
    uniform_share: Share = 0.1
    """Share of the times drawn uniformly instead, so that no noise level is never trained."""
    level_balance: Share | None = None
    """How far noise levels count by what can be learned there: the loss of each is divided by its
    average to this power. 0: not at all; 1: all levels weigh alike. None: 0.5 in flow matching, 0
    for noise schedules, as published."""


class OptimizerConfig(Section):
    type: Annotated[Literal["muon", "adamw"], BeforeValidator(lower)] = "muon"
    """`muon` for the matrices of the blocks with AdamW for the rest, or `adamw` for all."""
    weight_decay: NonNegative = 0.0
    """Decoupled, of matrices and embeddings."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.99)
    """Of AdamW."""
    eps: Positive = 1e-8
    """Of AdamW."""
    muon_momentum: BelowOne = 0.95
    """Of Muon (Nesterov)."""
    muon_period: PositiveInt = 4
    """Muon orthogonalises each matrix at one update in so many, and goes on in the direction found
    last at the others: momentum turns slowly, and orthogonalising is a third of a small step."""
    adamw_rate_share: Positive = 0.33
    """Beside Muon: what AdamW trains (embeddings, modulation, first and last layers) has this share
    of the learning rate."""


class LrSchedulerConfig(Section):
    type: Annotated[Literal["wsd", "constant", "linear", "cosine"], BeforeValidator(lower)] = "wsd"
    """`wsd`: warm up, stay, decay linearly to zero; or as diffusers names them."""
    warmup_steps: Count = 50
    """Updates over which the rate rises to its peak."""
    decay_share: Share = 0.6
    """Of `wsd`: the last share of the run in which the rate falls to zero."""


class SamplingConfig(Section):
    scheduler_type: Literal["ddpm", "ddim", "euler", "heun", "dpmsolver++", "unipc"] = "dpmsolver++"
    """The solver."""
    num_inference_steps: PositiveInt = 20
    """Steps of the solver; more are better and slower."""
    guidance_scale: NonNegative = 3.0
    """1: none; 2 to 5 follow the prompt more closely, at the cost of variety."""
    guidance_interval: tuple[Share, Share] = (0.0, 1.0)
    """Noise levels (share of the whole) at which guidance acts."""
    guidance_type: Annotated[Literal["cfg", "cfg_zero_star", "apg"], BeforeValidator(lower)] = "cfg"
    """Classifier-free guidance, or a refinement of it (see diffusion/guidance.py): CFG-Zero* (flow
    matching) scales the prediction to move away from, APG moves across the prediction."""
    guidance_rescale: Share = 0.0
    """How far to draw the contrast of a guided picture back to that of the unguided one."""
    zero_init_steps: Count = 0
    """Of CFG-Zero*, usable with any guidance of flow matching: the first steps stay at the noise,
    where a model is least to be trusted; 1 of 20 in the paper. They cost nothing."""
    apg_eta: Number = 0.0
    """Of `apg`: how much to keep of the guidance along the prediction, which saturates colours."""
    apg_threshold: NonNegative = 0.0
    """Of `apg`: the largest root mean square of a step's guidance, in units of the picture
    (black is -1, white 1) or of the latents; 0: none."""
    apg_momentum: Annotated[Number, Field(gt=-1, lt=1)] = -0.5
    """Of `apg`: the share of earlier steps' guidance that is added; below 0, taken away."""
    shift: Positive = 1.0
    """Above 1: more of the steps at high noise."""
    timestep_power: Positive = 1.0
    """Above 1: more of the steps at both ends, near noise and near the picture; below 1: in the
    middle."""


class CacheConfig(Section):
    folder: str = "./cache"
    """Where latents and text embeddings are kept, computed once; runs share it."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """In which precision they are kept."""


class AutoencoderConfig(Section):
    """Of `limner train-autoencoder`; `data`, the seed, device, and precision of `training`, and
    `optimizer.type` are as for training."""

    latent_channels: PositiveInt = 4
    """Numbers per latent. More are closer to the picture and harder to draw."""
    downsampling: Literal[2, 4, 8, 16] = 4
    """Pixels per latent, in each direction."""
    base_channels: Annotated[Whole, Field(ge=8, multiple_of=8)] = 16
    """Channels at full size; twice as many at each halving. Most of the time goes there."""
    layers_per_block: PositiveInt = 1
    """Residual blocks per size."""
    crop: PositiveInt = 64
    """Side of the squares cut from pictures to learn from, pixels."""
    batch_size: PositiveInt = 16
    """Squares per update."""
    learning_rate: Positive = 2e-3
    """Peak learning rate of Muon (convolutions) and AdamW (the rest, or all)."""
    max_minutes: Positive = 15.0
    """Wall-clock bound; the rate falls to zero over the last 40 % of it."""
    max_steps: PositiveInt | None = None
    """Updates at most."""
    kl_weight: NonNegative = 1e-4
    """Of the KL divergence of the latents from a normal distribution, per latent number."""
    edge_weight: NonNegative = 0.25
    """Of the error of differences between neighbours, at three scales, beside that of pixels."""


class EvaluationConfig(Section):
    """Of `limner evaluate`: what is drawn, and what it is measured with and against."""

    num_images: PositiveInt = 500
    """Pictures drawn for the distances. Where there are fewer captions, each is drawn again with
    other seeds."""
    prompts: Literal["held_out", "trained"] = "held_out"
    """Whose captions they are of. A data set that holds out none has `trained` ones only."""
    other_images: Count = 100
    """Pictures of the other captions, one each, so that recall, the checker, and the report show
    both kinds; 0: none."""
    seed: Seed = 0
    """Of the first picture; the next ones have the next seeds."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the network draws in. In float32 numbers do not depend on the batch or the machine."""
    loss_images: PositiveInt = 256
    """Pictures of either split that the loss by noise level looks at, at most."""
    reference: str | None = None
    """What distances are to. None: the data set's own pictures with the prompts that are drawn;
    else a folder of pictures, or an .npz of ADM's evaluator or of pytorch-fid."""
    reference_images: PositiveInt = 10_000
    """Pictures of the data set that the reference has, at most, evenly spread over them."""
    efficientnet: bool = True
    """Distances on EfficientNet-Lite0, whose weights a package brings (extra `evaluation`)."""
    inception: str | None = None
    """Weights of Inception-v3 for FID, KID, and the Inception score: a file, a folder that holds
    it, or a Hub id. None: not measured."""
    dinov2: str | None = None
    """DINOv2 for FD-DINOv2: a folder or a Hub id (facebook/dinov2-large). None: not measured."""
    clip: str | None = None
    """CLIP for CMMD and CLIP score: a folder or a Hub id (openai/clip-vit-large-patch14-336).
    None: not measured."""
    floor_repeats: Count = 3
    """How often two sets of real pictures are drawn to say what the distance between them is; 0:
    no floor."""


class Config(Section):
    """The whole configuration; build it with `load_config`, which checks it as a whole."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    vae: VaeConfig = VaeConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    training: TrainingConfig = TrainingConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lr_scheduler: LrSchedulerConfig = LrSchedulerConfig()
    sampling: SamplingConfig = SamplingConfig()
    cache: CacheConfig = CacheConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(
    source: str | Path | dict[str, Any] | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Read, override, check, and resolve a configuration.

    Args:
        source: a YAML file, a dictionary of sections, or None for the defaults.
        overrides: `section.key=value` strings, the value in YAML.

    Raises:
        LimnerError: naming every wrong key, what is wrong with it, and what to do.
    """
    where, values = _read(source)
    for text in overrides:
        _override(values, text)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        sections = list(Config.model_fields)
        # Of a key that takes a word or a number, what is said is what is wrong with the number.
        wrong = [
            e
            for e in error.errors()
            if not any(str(part).startswith("literal[") for part in e["loc"][2:])
        ]
        said = [sentence(e, known_keys(), sections) for e in wrong]
        raise LimnerError(explain(where, said)) from None
    config = resolve(config)
    if found := list(problems(config)):
        raise LimnerError(explain(where, found))
    return config


def known_keys() -> list[str]:
    """Every key, as `section.key`."""
    return [
        f"{section}.{key}"
        for section, field in Config.model_fields.items()
        for key in field.annotation.model_fields  # type: ignore[union-attr]
    ]


def _read(source: str | Path | dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    if source is None:
        return "configuration", {}
    if isinstance(source, dict):
        return "configuration", _sections(source)
    path = Path(source)
    if not path.is_file():
        raise LimnerError(f"no configuration file at {path.absolute()}; --config takes a YAML file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LimnerError(f"{path} is not readable as YAML: {error}") from None
    if not isinstance(values, dict):
        raise LimnerError(
            f"{path} holds a {type(values).__name__}; sections with keys were expected"
        )
    return str(path), _sections(values)


def _sections(values: dict[Any, Any]) -> dict[Any, Any]:
    """A copy to override. A section whose keys are all commented out is None in YAML: it is {}."""
    return {
        k: dict(v) if isinstance(v, dict) else {} if v is None else v for k, v in values.items()
    }


def _override(values: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and name):
        raise LimnerError(f"'{text}' is not an override: write section.key=value")
    if not isinstance(values.get(section), dict):
        values[section] = {}
    try:
        values[section][name] = yaml.safe_load(value)
    except yaml.YAMLError:
        values[section][name] = value


def complete(
    config: Config,
    channels: int = 3,
    downsampling: int = 1,
    vae_fingerprint: str | None = None,
    max_length: int | None = None,
    text_fingerprint: str | None = None,
) -> Config:
    """Choose what only the pretrained parts can tell, and check the configuration against them.

    Args:
        channels, downsampling: of the autoencoder's latents; 3 and 1 in pixel space.
        max_length: tokens that the pretrained text encoder reads; None for the built-in one.
        vae_fingerprint, text_fingerprint: hashes of the weights that were found.

    Raises:
        LimnerError: naming each key that does not fit the parts.
    """
    config = config.model_copy(
        update={
            "model": fit_model(config, channels, downsampling),
            "vae": changed(config.vae, fingerprint=vae_fingerprint),
            "text_encoder": changed(
                config.text_encoder,
                max_length=max_length or config.text_encoder.max_length,
                fingerprint=text_fingerprint,
            ),
        }
    )
    if found := [*problems(config), *misfits(config, channels, downsampling)]:
        raise LimnerError(explain("configuration", found))
    return config
