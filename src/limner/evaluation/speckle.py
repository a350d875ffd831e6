"""Residual noise in flat areas of generated images, compared with real images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from limner.data.dataset import ImageError
from limner.data.open import Data
from limner.evaluation.samples import Drawing, as_tensor, images_of, in_any_number
from limner.metrics.flat_regions import BLOCKS, flat_region_std

MOST = 400
"""Maximum number of generated and of real images."""
VISIBLE = 3.0
"""Excess of the standard deviation over real images, of 255, at which noise becomes visible."""


def measure_speckle(drawings: Sequence[Drawing], data: Data) -> dict[str, Any] | None:
    """Mean `flat_region_std` of generated images and of their real images; None if there are no
    real images, or images are too small.

    Returns:
        "drawn" and "real" (of 255), "count", and "visible": whether generated images are noisier by
        more than `VISIBLE`.
    """
    known, real = list[Drawing](), list[torch.Tensor]()
    for drawing in in_any_number([d for d in drawings if d.position is not None])[:MOST]:
        assert drawing.position is not None
        try:
            image = images_of(data, drawing.split).load(drawing.position)
        except ImageError:
            continue
        if min(image.shape[:2]) >= BLOCKS:
            known.append(drawing)
            real.append(flat_region_std(image[None]))
    if not known:
        return None
    drawn = float(torch.cat([flat_region_std(as_tensor([d])) for d in known]).mean())
    true = float(torch.cat(real).mean())
    return {
        "drawn": round(drawn, 3),
        "real": round(true, 3),
        "count": len(known),
        "visible": drawn > true + VISIBLE,
    }


def in_words(found: dict[str, Any]) -> str:
    """One sentence."""
    said = (
        f"noise in flat areas: standard deviation {found['drawn']:.1f} of 255 "
        f"({found['real']:.1f} in real images)"
    )
    return said + (": the generated images still contain noise" if found["visible"] else "")
