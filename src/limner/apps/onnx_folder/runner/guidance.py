"""Guidance: (x, x_0 as asked for, x_0 to move away from) -> x_0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from limner.apps.onnx_folder.runner.solvers import Array

Combine = Callable[[Array, Array, Array], Array]


def dot(a: Array, b: Array) -> Array:
    """Of each picture, [n, 1, 1, 1]."""
    return (a * b).sum((1, 2, 3), keepdims=True)


def classifier_free(sampling: dict[str, Any]) -> Combine:
    scale = sampling["guidance_scale"]
    return lambda x, x0, away: away + scale * (x0 - away)


def zero_star(sampling: dict[str, Any]) -> Combine:
    """CFG-Zero* (Fan et al. 2025, arXiv 2503.18886)."""
    scale = sampling["guidance_scale"]

    def combine(x: Array, x0: Array, away: Array) -> Array:
        v, u = x - x0, x - away
        u = u * (dot(v, u) / np.maximum(dot(u, u), 1e-12))
        return x - (u + scale * (v - u))

    return combine


def adaptive_projected(sampling: dict[str, Any]) -> Combine:
    """APG (Sadat et al. 2024, arXiv 2410.02416)."""
    scale, eta = sampling["guidance_scale"], sampling["apg_eta"]
    threshold, momentum = sampling["apg_threshold"], sampling["apg_momentum"]
    running: list[Array] = []

    def combine(x: Array, x0: Array, away: Array) -> Array:
        change = x0 - away
        if momentum:
            if running:
                change = change + momentum * running.pop()
            running.append(change)
        if threshold:
            length = np.sqrt(dot(change, change) / x0[0].size)
            change = change * np.minimum(threshold / np.maximum(length, 1e-12), 1)
        along = x0 * (dot(change, x0) / np.maximum(dot(x0, x0), 1e-12))
        return x0 + (scale - 1) * (change - along + eta * along)

    return combine


GUIDANCE = {"cfg": classifier_free, "cfg_zero_star": zero_star, "apg": adaptive_projected}


def rescaled(moved: Array, x0: Array, share: float) -> Array:
    """Towards the contrast of the prediction without guidance (Lin et al. 2023, 2305.08891)."""

    def spread(x: Array) -> Array:
        return x.std((1, 2, 3), keepdims=True, ddof=1)

    ratio = spread(x0) / np.maximum(spread(moved), 1e-12)
    mean = moved.mean((1, 2, 3), keepdims=True)
    return mean + (moved - mean) * (share * ratio + 1 - share)
