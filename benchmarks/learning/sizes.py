"""What is predicted, by what a patch holds and how wide the model is, at 64 to 512 pixels."""

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
    return f"{size} px, patches of {3 * patch**2:,} numbers into {width}: {what}"


def both(size: int, patch: int, width: int, minutes: float = 10) -> dict[str, Recipe]:
    """The same model, predicting the velocity and the picture."""
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
"""64 tokens; 256 where patches are of 4 pixels, and in the last pair."""
