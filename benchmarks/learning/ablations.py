"""Recipes that differ from the defaults, ten minutes each: how the defaults were found, and
ablations."""

from __future__ import annotations

from dataclasses import replace

from recipes import Recipe
from sizes import FITS, TUNED


def change(*overrides: str, experiment: str | None = None, minutes: float = 10) -> Recipe:
    return Recipe("", overrides, minutes, experiment=experiment)


def step(
    prediction: str, rate: str, period: int, *overrides: str, experiment: str | None = None
) -> Recipe:
    """A recipe with the defaults of its time written out, because the defaults have changed
    since."""
    experiments = "independent_times", *([experiment] if experiment else [])
    return change(
        f"scheduler.prediction_type={prediction}",
        "scheduler.logit_mean=-1.2",
        "scheduler.level_balance=0",
        "lr_scheduler.decay_share=0.3",
        f"training.learning_rate={rate}",
        f"optimizer.muon_period={period}",
        "optimizer.adamw_rate_share=1",
        *overrides,
        experiment=" ".join(experiments),
    )


def standing(*overrides: str, experiment: str | None = None, minutes: float = 10) -> Recipe:
    """The defaults before the timestep mean followed the learning rate decay."""
    base = "scheduler.logit_mean=-0.6", "optimizer.adamw_rate_share=0.33"
    recipe = step("velocity", "4e-3", 4, *base, *overrides, experiment=experiment)
    return replace(recipe, minutes=minutes)


def moving(*overrides: str, experiment: str | None = None) -> Recipe:
    """The defaults before loss balancing: the timestep mean moves from -1 to 0.6 during the
    decay."""
    times = "scheduler.logit_mean=-1", "scheduler.logit_mean_end=0.6"
    return standing(*times, "lr_scheduler.decay_share=0.6", *overrides, experiment=experiment)


BASE_RECIPE = (
    "base: velocity, lr 4e-3, Muon every 4th step, timestep mean -0.6, AdamW params at lr/3"
)
"""Recipes named `base, ...` change one setting of this one."""

WAY: dict[str, Recipe] = {
    "first defaults": step("sample", "1e-3", 1),
    "velocity": step("velocity", "1e-3", 1),
    "velocity, timestep mean -0.6": step("velocity", "1e-3", 1, "scheduler.logit_mean=-0.6"),
    "velocity, timestep mean 0": step("velocity", "1e-3", 1, "scheduler.logit_mean=0"),
    **{
        f"EDM preconditioning, timestep mean {mean:g}": step(
            "velocity", "1e-3", 1, f"scheduler.logit_mean={mean}", experiment="preconditioned"
        )
        for mean in (-0.6, 0)
    },
    "velocity, lr 2e-3": step("velocity", "2e-3", 1),
    "velocity, AdamW 1e-3": step("velocity", "1e-3", 1, "optimizer.type=adamw"),
    "velocity, Muon every 4th step": step("velocity", "1e-3", 4),
    **{
        f"velocity, lr 4e-3, Muon every 4th step{more}": step("velocity", "4e-3", 4, *overrides)
        for more, overrides in (
            ("", ()),
            (", batch 16", ("training.batch_size=16",)),
            (", timestep mean -0.6", ("scheduler.logit_mean=-0.6",)),
            (", timestep mean 0", ("scheduler.logit_mean=0",)),
            (", decay over 60%", ("lr_scheduler.decay_share=0.6",)),
        )
    },
    "velocity, lr 8e-3, Muon every 8th step": step("velocity", "8e-3", 8),
    "velocity, lr 8e-3, Muon every 8th step, batch 16": step(
        "velocity", "8e-3", 8, "training.batch_size=16"
    ),
    BASE_RECIPE: standing(),
    **{
        f"base, {name}": recipe
        for name, recipe in {
            "15 minutes": standing(minutes=15),
            "lr 6e-3": standing("training.learning_rate=6e-3"),
            "lr 3e-3": standing("training.learning_rate=3e-3"),
            "AdamW params at lr/10": standing("optimizer.adamw_rate_share=0.1"),
            "timestep mean 0": standing("scheduler.logit_mean=0"),
            "value residual": standing(experiment="value_residual"),
            "Muon every 8th step": standing("optimizer.muon_period=8"),
            "Muon every 2nd step, 3 iterations": standing(
                "optimizer.muon_period=2", experiment="muon_3_iterations"
            ),
            "gates initialised open": standing(experiment="open_gates"),
            "long skip connections": standing(experiment="long_skips"),
            "timestep mean from -1.2 to 0.3": standing(experiment="moving_times"),
            "timestep mean -0.8, then 0.2 during decay": standing(experiment="times_jump"),
            "timestep mean from -0.7 to 1 during decay": standing(
                "scheduler.logit_mean=-0.7", "scheduler.logit_mean_end=1"
            ),
        }.items()
    },
    **{
        f"timestep mean from -1 to 0.6 during decay{more}": recipe
        for more, recipe in {
            "": replace(moving(), seeds=(0, 1)),
            ", timestep std 0.8": moving("scheduler.logit_std=0.8"),
            ", hidden size 320, 4 layers": moving(
                *("model.hidden_size=320", "model.num_layers=4", "model.num_heads=5"),
                "text_encoder.hidden_size=256",
            ),
            ", convolutional output head": moving(experiment="detail_head"),
        }.items()
    },
    "timestep mean from -1 to 1 during decay": moving("scheduler.logit_mean_end=1"),
    "timestep mean from -1.2 to 0.6, decay over 90%": moving(
        "scheduler.logit_mean=-1.2", "lr_scheduler.decay_share=0.9"
    ),
}
"""One seed each, in the order in which they were tried."""

PICTURE = "scheduler.prediction_type=sample"
ADAMW = "optimizer.type=adamw"

ABLATIONS: dict[str, dict[str, Recipe]] = {
    "": {"default": Recipe("Limner's defaults", seeds=(0, 1, 2))},
    "Prediction type and noise levels": {
        "predict the picture": change(PICTURE),
        "predict noise": change(
            "scheduler.objective=flow_matching", "scheduler.prediction_type=epsilon"
        ),
        "timestep mean constant at -0.6": change("scheduler.logit_mean=-0.6"),
        "timestep mean constant at 0.3": change("scheduler.logit_mean=0.3"),
        "timestep mean ends at 0.6": change(
            "scheduler.logit_mean=-1", "scheduler.logit_mean_end=0.6"
        ),
        "timesteps sampled independently": change(experiment="independent_times"),
        "no uniform timesteps": change("scheduler.uniform_share=0"),
        "no loss balancing": change("scheduler.level_balance=0"),
        "full loss balancing": change("scheduler.level_balance=1"),
        "two noise levels per picture": change(experiment="two_noise_levels"),
        "contrastive": change(experiment="contrastive"),
    },
    "The optimizer": {
        "AdamW 1e-3": change(ADAMW),
        "AdamW 2e-3": change(ADAMW, "training.learning_rate=2e-3"),
        "AdamW 4e-3": change(ADAMW, "training.learning_rate=4e-3"),
        "schedule-free AdamW 3e-3": change(
            ADAMW,
            "training.learning_rate=3e-3",
            "lr_scheduler.type=constant",
            experiment="schedule_free",
        ),
        "lr 3e-3": change("training.learning_rate=3e-3"),
        "lr 6e-3": change("training.learning_rate=6e-3"),
        "Muon at every step": change("optimizer.muon_period=1"),
        "Muon every 2nd step": change("optimizer.muon_period=2"),
        "Muon every 8th step": change("optimizer.muon_period=8"),
        "Muon: 3 iterations": change(experiment="muon_3_iterations"),
        "Muon: Polar Express, 4 iterations": change(experiment="polar_express_4"),
        "AdamW params at full lr": change("optimizer.adamw_rate_share=1"),
        "AdamW params at lr/10": change("optimizer.adamw_rate_share=0.1"),
        "NorMuon at every step": change("optimizer.muon_period=1", experiment="normuon"),
        "cautious Muon": change(experiment="cautious"),
        "momentum 0.9": change("optimizer.muon_momentum=0.9"),
        "weight decay 0.1": change("optimizer.weight_decay=0.1"),
    },
    "The schedule": {
        "decay over 30%": change("lr_scheduler.decay_share=0.3"),
        "decay over 90%": change("lr_scheduler.decay_share=0.9"),
        "no decay": change("lr_scheduler.type=constant"),
        "cosine": change("lr_scheduler.type=cosine"),
        "no EMA": change("training.use_ema=false"),
        "EMA ramp 15%": change("training.ema_ramp=0.15"),
        "batch 64": change("training.batch_size=64"),
        "half the batch size at first": change(experiment="small_batches_first"),
        "half the resolution at first": change(experiment="coarse_first"),
    },
    "The network": {
        "DiT blocks": change(
            "model.architecture=dit", "model.hidden_size=224", "text_encoder.hidden_size=256"
        ),
        "text as one vector": change(experiment="text_as_vector"),
        "text as tokens only": change(experiment="text_as_tokens"),
        "text encoder of 1 layer": change("text_encoder.num_layers=1"),
        "text encoder of 4 layers": change("text_encoder.num_layers=4"),
        "self-alignment": change(experiment="self_alignment"),
    },
    "The data": {
        "first caption only": change("data.main_caption_share=1"),
        "caption dropout 0.2": change("training.caption_dropout=0.2"),
        "dropout 0.1": change("model.dropout=0.1"),
        "non-leaky augmentation": change(experiment="augmented"),
    },
    "At 128 pixels (patch size 16: 768 values per patch, three times the width)": {
        name: change("data.image_size=128", "model.patch_size=16", *overrides)
        for name, overrides in (
            ("128 pixels", ()),
            ("128 pixels, predict the picture", (PICTURE,)),
            (
                "128 pixels, timestep mean from -1.7 to -0.1",
                ("scheduler.logit_mean=-1.7", "scheduler.logit_mean_end=-0.1"),
            ),
        )
    },
    "At several sizes: patch dimension and model width": FITS,
    "At several sizes: settings tuned for velocity, with sample prediction": TUNED,
    "At 1,024 tokens (patch size 2, width 128)": {
        name: change(
            *("model.patch_size=2", "model.hidden_size=128", "model.num_heads=2"),
            "text_encoder.hidden_size=128",
            experiment=experiment,
            minutes=30,
        )
        for name, experiment in (
            ("1,024 tokens", None),
            ("1,024 tokens, half routed around the middle blocks", "routed"),
        )
    },
}
