"""Notes before a run: settings that will have another effect than expected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from limner.config.defaults import noise_floor, patch_numbers

if TYPE_CHECKING:
    from limner.config.schema import Config

BUILT_IN: dict[str, dict[str, tuple[Any, str]]] = {
    "modern": {
        "activation_fn": ("swiglu", "swiglu"),
        "norm_eps": (1e-6, "1e-6"),
        "attention_bias": (False, "no biases"),
    },
    "dit": {
        "activation_fn": ("gelu-approximate", "gelu-approximate"),
        "norm_eps": (1e-6, "1e-6"),
        "attention_bias": (True, "biases"),
    },
}
"""Keys of `model` that an architecture does not leave open: what it has, as value and in words."""


def notes(config: Config) -> list[str]:
    """Sentences about what a resolved configuration will do differently than its keys say.

    None of it is an error: the run is what the sentences say.
    """
    return [*_not_open(config), *_noise_through_the_width(config)]


def _noise_through_the_width(config: Config) -> Iterator[str]:
    """A choice of what is predicted that cannot work: see `noise_fits`."""
    model, predicted = config.model, config.scheduler.prediction_type
    if predicted is None or not noise_floor(config):
        return
    numbers = patch_numbers(model)
    yield (
        f"scheduler.prediction_type: {predicted} includes the noise, {numbers:,} independent "
        f"values per patch ({model.patch_size} x {model.patch_size} x {model.in_channels}), but "
        f"model.hidden_size is only {model.hidden_size:,}: every picture will keep some noise; set "
        "scheduler.prediction_type=sample (or remove it), or use a smaller model.patch_size"
    )


def _not_open(config: Config) -> Iterator[str]:
    """Keys that other programs' configurations have, and that mean nothing for an architecture."""
    model = config.model
    for key, (value, described) in BUILT_IN[model.architecture].items():
        asked = getattr(model, key)
        if asked is not None and asked != value:
            yield (
                f"model.{key} is {asked!r}, but the architecture `{model.architecture}` always "
                f"uses {described}"
            )
