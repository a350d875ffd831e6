"""The evaluation protocol: everything that results depend on, as flat keys and plain values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limner.config import Config
from limner.data.open import Data
from limner.device import name_of
from limner.evaluation import heldout_loss
from limner.evaluation.about import versions
from limner.evaluation.metrics import NamedNetwork
from limner.evaluation.prompts import Plan
from limner.evaluation.reference.reference import Reference
from limner.evaluation.reference.sources import DataImages
from limner.files.fingerprints import digest
from limner.inference.generator import ImageGenerator

METHOD = 1
"""Incremented whenever a change of Limner changes results."""


def protocol(
    config: Config,
    data: Data,
    plan: Plan,
    reference: Reference,
    eyes: Sequence[NamedNetwork],
    generator: ImageGenerator,
    cache: Path,
) -> dict[str, Any]:
    """What must be equal for numbers to be comparable; the prefix of a key says for which numbers
    (see `compare`)."""
    drawn = "".join(f"{d.seed} {d.prompt}\n" for d in plan.measured)
    asked = "".join(f"{d.split} {d.seed} {d.prompt}\n" for d in plan.asked)
    size = config.data.image_size
    space = config.vae.fingerprint or "pixels"
    found: dict[str, Any] = {
        "method": METHOD,
        "drawn.pictures": len(plan.measured),
        "drawn.split": plan.split,
        "drawn.captions": len({d.prompt for d in plan.measured}),
        "drawn.prompts": digest(drawn).hex(),
        "drawn.seed": config.evaluation.seed,
        "drawn.resolution": f"{size} x {size}",
        "drawn.dtype": name_of(generator.dtype),
    }
    found |= {f"sampling.{key}": plain_value(value) for key, value in config.sampling}
    found |= reference.protocol(cache)
    for eye in eyes:
        found |= {f"{eye.key}.{key}": value for key, value in eye.network.identity().items()}
    found |= {
        "asked.prompts": digest(asked).hex(),
        "asked.captions": len(plan.asked),
        "data.trained": DataImages(data.trained).contents(cache).hex(),
        "data.held_out": DataImages(data.held_out).contents(cache).hex(),
    }
    if data.held_out.rows:
        found |= heldout_loss.protocol(config, data, space, generator.dtype, cache)
    own = versions()
    return found | {"software.limner": own["limner"], "software.torch": own["torch"]}


def plain_value(value: Any) -> Any:
    return ", ".join(f"{part:g}" for part in value) if isinstance(value, tuple) else value
