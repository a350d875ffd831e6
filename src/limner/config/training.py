"""Settings of the training run, the optimizer, and the learning rate schedule."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from limner.config.types import (
    Batch,
    BelowOne,
    Count,
    Helpers,
    NonNegative,
    Positive,
    PositiveInt,
    Section,
    Seed,
    Share,
    lower,
    yaml_no,
)

Tracker = (
    Literal["tensorboard", "wandb", "trackio", "comet_ml", "mlflow"]
    | Literal["aim", "clearml", "dvclive", "swanlab", "none"]
)


def one_or_more(value: Any) -> Any:
    """`wandb` for `[wandb]`; YAML reads an empty value as None."""
    return (value,) if isinstance(value, str) else ("none",) if value is None else value


class TrainingConfig(Section):
    output_dir: str = "./outputs"
    """Run folder: checkpoints, log, previews, report."""
    seed: Seed = 0
    """Seed of all randomness: initialisation, data order, captions, noise, timesteps, dropout."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """`auto`: CUDA, then Apple's GPU, then the CPU."""
    batch_size: Literal["auto"] | Batch = 32
    """Micro-batch size: pictures per forward pass and process. `auto`: the largest power of two
    that fits into 90 % of the free memory and does not exceed `effective_batch_size` (256 if that
    is not set)."""
    gradient_accumulation_steps: Batch = 1
    """Forward passes per update (optimizer step)."""
    effective_batch_size: Annotated[PositiveInt, Field(le=2**30)] | None = None
    """Pictures per update over all processes and forward passes. Sets
    `gradient_accumulation_steps`, so that a run trains the same way on any machine."""
    learning_rate: Positive | None = None
    """Peak learning rate. Muon's update is scaled to the size of AdamW's. None: 4e-3 with Muon,
    1e-3 with AdamW, 1e-2 for adapters (times sqrt(16 / rank) above that rank), 2.5e-3 with AdamW
    for a distilled model; times sqrt(256 / hidden_size) in wider models."""
    num_epochs: Positive | None = None
    """Passes over the training pictures."""
    max_steps: PositiveInt | None = None
    """Number of updates; overrides `num_epochs`."""
    max_minutes: Annotated[Positive, Field(le=1e8)] | None = None
    """Wall-clock time limit in minutes. With lr_scheduler `wsd`, the decay starts early enough to
    finish within it."""
    init_from: str | None = None
    """Fine-tuning: run folder, checkpoint, exported file, or Hub id of a published model whose
    (EMA) weights initialise the run. Keys of `model`, `vae`, `text_encoder`, and the prediction
    type that are not set are taken from that model. Weights that do not fit are newly initialised
    and reported."""
    resume: Annotated[Literal["auto", "no"], BeforeValidator(yaml_no)] = "auto"
    """`auto`: resume if output_dir contains a run with this configuration; a run with another
    configuration is an error. `no`: any earlier run there is an error. `--resume` takes
    precedence."""
    save_steps: PositiveInt | None = None
    """Save a checkpoint every this many updates, and at the end. None: 1000, or only at the end of
    epochs if `save_every_n_epochs` is set."""
    save_every_n_epochs: PositiveInt | None = None
    """Save a checkpoint every this many epochs, in addition to `save_steps` if both are set."""
    checkpoints_total_limit: PositiveInt | None = 3
    """Number of checkpoints to keep; older ones are deleted after a new one is safely written.
    None: keep all."""
    keep_best: bool = True
    """Also save a checkpoint whenever the held-out loss reaches a new minimum, and keep the best
    one."""
    save_errors: Literal["continue", "stop"] = "continue"
    """If a checkpoint cannot be written (disk full, ...): `continue` with the last good one and
    retry at the next save, or `stop`. At the end of the run, it is an error either way."""
    logging_steps: PositiveInt = 10
    """Log the training loss, gradient norm, and speed every this many updates, averaged over
    them."""
    heldout_steps: PositiveInt = 250
    """Measure the held-out loss every this many updates."""
    heldout_pictures: Batch = 64
    """Number of held-out pictures (and as many training pictures) used for the held-out loss."""
    preview_steps: PositiveInt = 500
    """Generate preview pictures every this many updates."""
    preview_prompts: tuple[str, ...] | None = None
    """Prompts of the previews. None: eight captions, half of them held out."""
    mixed_precision: Annotated[Literal["auto", "no", "fp16", "bf16"], BeforeValidator(yaml_no)] = (
        "auto"
    )
    """`auto`: bf16 if the hardware supports it, otherwise none."""
    max_grad_norm: Positive = 1.0
    """Clip gradients to this L2 norm."""
    caption_dropout: Share = 0.1
    """Fraction of pictures trained with an empty caption, for classifier-free guidance."""
    use_ema: bool = True
    """Keep an exponential moving average (EMA) of the weights, and sample with it."""
    ema_decay: BelowOne = 0.9999
    """EMA decay per update, reached once the run is long enough."""
    ema_ramp: Positive = 0.05
    """EMA warm-up: the half-life is at most this fraction of the pictures seen so far (as in
    EDM)."""
    num_workers: Helpers = 2
    """Number of data loading processes; 0: load in the training process."""
    prefetch_factor: Annotated[PositiveInt, Field(le=1_024)] = 4
    """Batches that each worker loads in advance."""
    gradient_checkpointing: bool = False
    """Recompute the activations of the blocks in the backward pass instead of storing them: less
    memory, about a third more time (`limner estimate` says when it is needed)."""
    sharding: Literal["none", "fsdp"] = "none"
    """With several processes: `none`: each process holds the whole model; `fsdp` (FSDP2): each
    holds a shard of weights, gradients, optimizer states, and EMA, for models that do not fit on
    one GPU."""
    checkpoint_shards: bool = False
    """With sharding: each process writes its own shard of a checkpoint, instead of the first
    process writing everything. Training waits for it, and no process needs memory for the whole
    model."""
    process_timeout: Annotated[Positive, Field(le=1e7)] = 1800.0
    """Seconds without a sign of the other processes after which a process gives up; must be longer
    than the work that only the first process does (held-out loss, previews)."""
    compile_model: bool = True
    """Use torch.compile for the transformer blocks if a compiler is available."""
    trackers: Annotated[tuple[Tracker, ...], BeforeValidator(one_or_more)] = ("tensorboard",)
    """Experiment trackers for metrics, previews, and the configuration, by their names in
    accelerate; one or several. Without a login, they log to this machine."""
    tracker_project: Annotated[str, Field(min_length=1)] = "limner"
    """Project name in the trackers."""
    run_name: str | None = None
    """Run name in the trackers. None: the name of `output_dir`."""

    @property
    def micro_batch_size(self) -> int:
        """`batch_size` as a number, once training/batch_size.py has settled what is `auto`."""
        assert self.batch_size != "auto"
        return self.batch_size


class OptimizerConfig(Section):
    type: Annotated[Literal["muon", "adamw"], BeforeValidator(lower)] = "muon"
    """`muon` for the matrices of the blocks with AdamW for all other parameters, or `adamw` for
    all, which is the default of `limner distill` and of adapters."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of matrices and embeddings."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.99)
    """Betas of AdamW."""
    eps: Positive = 1e-8
    """Epsilon of AdamW."""
    muon_momentum: BelowOne = 0.95
    """Momentum of Muon (Nesterov)."""
    muon_period: PositiveInt = 4
    """Muon orthogonalises each matrix every this many updates and reuses the last direction in
    between: the momentum changes slowly, and orthogonalisation is a third of a small step."""
    adamw_rate_share: Positive = 0.33
    """With Muon: learning rate of the parameters that AdamW trains (embeddings, modulation, first
    and last layers), as a fraction of `learning_rate`."""


class LrSchedulerConfig(Section):
    type: Annotated[Literal["wsd", "constant", "linear", "cosine"], BeforeValidator(lower)] = "wsd"
    """`wsd`: warm up, stay, and decay linearly to zero; the others as in diffusers."""
    warmup_steps: Count = 50
    """Updates over which the learning rate warms up to its peak; 20 is the default of `limner
    distill`."""
    decay_share: Share = 0.6
    """For `wsd`: last fraction of the run, in which the learning rate decays to zero; 1.0 is the
    default of `limner distill`."""
