"""Prediction type by patch dimension and model width, at 64 to 512 pixels."""

from __future__ import annotations

from recipes import Recipe

PREDICTIONS = ("velocity", "sample")
HEADS = 64
"""Width of a head."""


def sized(size: int, patch: int, width: int, *overrides: str, minutes: float = 10) -> Recipe:
    return Recipe(
        "",
        (
            f"data.image_size={size}",
            f"model.patch_size={patch}",
            f"model.hidden_size={width}",
            f"model.num_heads={width // HEADS}",
            "text_encoder.hidden_size=128",
            *overrides,
        ),
        minutes,
    )


def name_of(size: int, patch: int, width: int, what: str) -> str:
    return f"{size} px, patch {patch} ({3 * patch**2:,} values), width {width}: {what}"


def both(size: int, patch: int, width: int, minutes: float = 10) -> dict[str, Recipe]:
    """The same model with velocity and with sample prediction."""
    return {
        name_of(size, patch, width, what): sized(
            size, patch, width, f"scheduler.prediction_type={what}", minutes=minutes
        )
        for what in PREDICTIONS
    }


FITS: dict[str, Recipe] = {
    **both(64, 8, 128),
    **both(128, 16, 256),
    **both(256, 32, 256),
    **both(64, 8, 192),
    **both(64, 8, 256),
    **both(64, 8, 384, minutes=15),
    **both(64, 4, 128, minutes=15),
    **both(512, 64, 256, minutes=15),
    **both(128, 8, 256, minutes=30),
}
"""64 tokens; 256 with patch size 4, and in the last pair."""

PICTURE = "scheduler.prediction_type=sample"


def times(start: float, end: float) -> tuple[str, str]:
    return f"scheduler.logit_mean={start}", f"scheduler.logit_mean_end={end}"


def around(size: int, patch: int, minutes: float = 10) -> dict[str, Recipe]:
    """Settings that were tuned for velocity, varied around the defaults of sample prediction."""
    return {
        f"{size} px, sample: {name}": sized(size, patch, 256, PICTURE, *overrides, minutes=minutes)
        for name, overrides in {
            "timestep mean from -1 to 0.6": times(-1, 0.6),
            "timestep mean from -1 to 1.2": times(-1, 1.2),
            "timestep mean from -1.7 to 2": times(-1.7, 2),
            "timestep mean from -1.7 to 0.6": times(-1.7, 0.6),
            "timestep mean from -2.4 to 2": times(-2.4, 2),
            "timestep mean from -2.4 to 1.2": times(-2.4, 1.2),
            "timestep mean from -2.4 to 0.6": times(-2.4, 0.6),
            "timestep mean from -3.1 to 0.6": times(-3.1, 0.6),
            "no loss balancing": ("scheduler.level_balance=0",),
            "full loss balancing": ("scheduler.level_balance=1",),
            "lr 2e-3": ("training.learning_rate=2e-3",),
            "lr 6e-3": ("training.learning_rate=6e-3",),
        }.items()
    }


TUNED: dict[str, Recipe] = {**around(256, 32), **around(128, 16), **around(512, 64, minutes=15)}
