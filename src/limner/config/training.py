"""How it learns: the run, the optimizer, and the learning rate."""

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
    """The run's folder: checkpoints, log, previews, report."""
    seed: Seed = 0
    """Of everything random: first weights, order, captions, noise, noise levels, dropout."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """`auto`: CUDA, then Apple's GPU, then the processor."""
    batch_size: Literal["auto"] | Batch = 32
    """Pictures per forward pass (micro-batch) and process. `auto`: the largest power of two that
    fits into 90 % of the free memory, and into `effective_batch_size` (256 without it)."""
    gradient_accumulation_steps: Batch = 1
    """Forward passes per update."""
    effective_batch_size: Annotated[PositiveInt, Field(le=2**30)] | None = None
    """Pictures per update, over all processes and forward passes: `gradient_accumulation_steps`
    follows from it, so that a run learns the same whatever machine it is on."""
    learning_rate: Positive | None = None
    """Peak learning rate: Muon's update is scaled to AdamW's size. None: 4e-3 with Muon, 1e-3 with
    AdamW, and 1e-2 for adapters (times the root of 16 / rank above that rank); times the root of
    256 / hidden_size in wider models."""
    num_epochs: Positive | None = None
    """Passes over the training pictures."""
    max_steps: PositiveInt | None = None
    """Updates; wins over `num_epochs`."""
    max_minutes: Annotated[Positive, Field(le=1e8)] | None = None
    """Wall-clock bound. With lr_scheduler `wsd` the decay begins in time to end within it."""
    init_from: str | None = None
    """Fine-tuning: the run folder, checkpoint, exported file, or published model (by its Hub id)
    whose (averaged) weights the run starts with. Keys of `model`, `vae`, `text_encoder`, and of
    what is predicted that are not set are those of that model; what does not fit is new, and
    said."""
    resume: Annotated[Literal["auto", "no"], BeforeValidator(yaml_no)] = "auto"
    """`auto`: where output_dir holds a run of this configuration, the run goes on; of another one,
    that is an error. `no`: any earlier run there is an error. (`--resume` is asked first.)"""
    save_steps: PositiveInt | None = None
    """A checkpoint every so many updates, and at the end. None: 1000, or at the end of epochs only
    where `save_every_n_epochs` is set."""
    save_every_n_epochs: PositiveInt | None = None
    """A checkpoint whenever so many epochs are complete, besides those of `save_steps` if that is
    set, too."""
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
    heldout_pictures: Batch = 64
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
    """Share of the average that stays at an update, once the run is long enough for it."""
    ema_ramp: Positive = 0.05
    """The average's half-life is at most this share of the pictures seen so far (EDM's warm-up)."""
    num_workers: Helpers = 2
    """Processes that load pictures; 0: the training process does."""
    prefetch_factor: Annotated[PositiveInt, Field(le=1_024)] = 4
    """Batches each of them keeps ready."""
    gradient_checkpointing: bool = False
    """Compute the blocks' activations again in the backward pass instead of keeping them: less
    memory, about a third more time (`limner estimate` says when it is needed)."""
    sharding: Literal["none", "fsdp"] = "none"
    """Of several processes: `none`, each holds the whole model; `fsdp` (FSDP2), each holds a part
    of weights, gradients, optimizer states, and average, for what does not fit into one GPU."""
    checkpoint_shards: bool = False
    """Of a sharded run: each process writes its part into a checkpoint, instead of the first one
    all of them. Training waits for it; no process needs memory for the whole."""
    process_timeout: Annotated[Positive, Field(le=1e7)] = 1800.0
    """Seconds after which a process that hears nothing of the others gives up; longer than what the
    first one does alone (held-out loss, previews)."""
    compile_model: bool = True
    """torch.compile the transformer blocks where a compiler is at hand."""
    trackers: Annotated[tuple[Tracker, ...], BeforeValidator(one_or_more)] = ("tensorboard",)
    """Where figures, previews, and the configuration go besides the run's folder, by the names
    that accelerate has for them; one or several. Without a login they write to this machine."""
    tracker_project: Annotated[str, Field(min_length=1)] = "limner"
    """What trackers file the run under."""
    run_name: str | None = None
    """What trackers call the run; None: the name of `output_dir`."""

    @property
    def micro_batch_size(self) -> int:
        """`batch_size` as a number, once training/batch_size.py has settled what is `auto`."""
        assert self.batch_size != "auto"
        return self.batch_size


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
