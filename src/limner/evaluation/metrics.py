"""All metrics on the features of a network, with confidence intervals, baselines, and notes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.config import EvaluationConfig
from limner.errors import LimnerError
from limner.evaluation.networks.networks import EfficientNet, FeatureNetwork, Inception, Metric
from limner.evaluation.networks.transformers import CLIP, DINOv2
from limner.evaluation.reference.statistics import Statistics
from limner.metrics.frechet import Gaussian, frechet_distance, frechet_distance_of
from limner.metrics.interval import Measured
from limner.metrics.kernel_distance import (
    cmmd,
    kernel_distance_over_subsets,
    measure_kernel_distance,
)
from limner.metrics.precision_recall import PrecisionRecall, precision_recall
from limner.metrics.real_vs_real import Floor, floor
from limner.metrics.scores import clip_score, inception_score

ALL_PAIRS = 25_000
"""Total number of images up to which a kernel distance uses all pairs, which takes about a minute.
Beyond that it is the mean over subsets, as in published tables."""
EQUAL_COUNTS = "depends on the sizes of both sets; compare it only at equal sizes"

Floors = dict[Metric, Floor]


@dataclass(frozen=True)
class NamedNetwork:
    """A feature extractor, and the key of `evaluation` that selected it."""

    key: str
    network: FeatureNetwork


def open_networks(
    settings: EvaluationConfig, device: torch.device
) -> tuple[list[NamedNetwork], list[str]]:
    """The configured feature extractors, and notes about metrics that are skipped without one.

    The packaged network is used by default, so if it is missing that is only a note; a network that
    was named in the configuration is required.

    Raises:
        LimnerError: a configured network is not available, or is a different model.
    """
    eyes, missing = list[NamedNetwork](), list[str]()
    if settings.efficientnet:
        try:
            eyes.append(NamedNetwork("efficientnet", EfficientNet(device)))
        except LimnerError as error:
            missing.append(
                "skipped the kernel and Frechet distance, precision, and recall on "
                f"EfficientNet-Lite0: {error}"
            )
    if settings.inception is not None:
        network = Inception(settings.inception, "evaluation.inception", device)
        eyes.append(NamedNetwork("inception", network))
    if settings.dinov2 is not None:
        eyes.append(NamedNetwork("dinov2", DINOv2(settings.dinov2, "evaluation.dinov2", device)))
    if settings.clip is not None:
        eyes.append(NamedNetwork("clip", CLIP(settings.clip, "evaluation.clip", device)))
    return eyes, missing


def measure(
    eye: NamedNetwork,
    drawn: Tensor,
    prompts: Sequence[str],
    reference: Statistics | None,
    others: Tensor | None,
    others_are: str,
    repeats: int,
    seed: int,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The metrics of one network for evaluation.json, and notes about skipped ones.

    Args:
        drawn: features of the generated images [N, d].
        prompts: their prompts.
        reference: the reference; None: only metrics without a reference are measured.
        others: features of other real images, for the baseline, or None.
        others_are: describes them.
        repeats: random splits for the baseline; 0: no baseline.
        seed: of all random choices.
    """
    network, real = eye.network, reference.features if reference is not None else None
    found: dict[Metric, Measured] = {}
    said = []

    def attempt(metric: Metric, make: Callable[[], Measured]) -> None:
        if metric in network.metrics:
            try:
                found[metric] = make()
            except LimnerError as error:
                said.append(f"skipped {network.label(metric)}: {error}")

    if reference is not None:
        gaussian = reference.gaussian
        attempt("Frechet distance", lambda: frechet_distance(Gaussian.of(drawn), gaussian))
    if real is not None:
        attempt("kernel distance", lambda: kernel(drawn, real, seed))
        attempt("CMMD", lambda: cmmd(drawn, real))
        if "precision" in network.metrics:
            try:
                both = precision_recall(real, drawn)
                found |= {"precision": _noted(both.precision), "recall": _noted(both.recall)}
            except LimnerError as error:
                label = f"{network.label('precision')} and recall"
                said.append(f"skipped {label}: {error}")
    if isinstance(network, Inception):
        attempt("Inception score", lambda: inception_score(network.logits(drawn), seed=seed))
    if isinstance(network, CLIP):
        attempt(
            "CLIP score", lambda: clip_score(drawn, network.text_features(prompts), prompts, seed)
        )
        if cut := network.too_long(prompts):
            said.append(
                f"prompts that are longer than {network.name} reads, and are truncated for the "
                f"CLIP score: {len(cut)} of {len(prompts)}"
            )
    floors = Floors()
    if real is not None and repeats:
        try:
            floors = floors_of(
                [m for m in found if m in DISTANCES or m in ("precision", "recall")],
                real, others, others_are, (len(drawn), len(real)), repeats, seed,
            )  # fmt: skip
        except LimnerError as error:
            said.append(f"skipped the real-vs-real baseline on {network.name}: {error}")
    count = reference.gaussian.count if reference is not None else None
    about = reference.about if reference is not None else None
    records = [
        {
            "name": network.label(metric),
            "metric": metric,
            "slot": eye.key,
            **asdict(measured),
            "better": "lower" if metric in DISTANCES else "higher",
            "counts": [len(drawn), None if metric in ALONE else count],
            "floor": asdict(floors[metric]) if metric in floors else None,
            "network": network.identity() | {"name": network.name, "verified": network.verified},
            "reference": None if metric in ALONE else about,
        }
        for metric, measured in found.items()
    ]
    return records, said


def kernel(a: Tensor, b: Tensor, seed: int) -> Measured:
    """The kernel distance over all images, or over subsets if there are too many."""
    if len(a) + len(b) <= ALL_PAIRS:
        return measure_kernel_distance(a, b)
    return kernel_distance_over_subsets(a, b, size=min(1000, len(a), len(b)), seed=seed)


DISTANCES: dict[Metric, Callable[[Tensor, Tensor], Measured]] = {
    "Frechet distance": frechet_distance_of,
    "kernel distance": lambda a, b: kernel(a, b, 0),
    "CMMD": cmmd,
}
"""Functions of the features of generated and of reference images; lower is better."""
ALONE: tuple[Metric, ...] = ("Inception score", "CLIP score")
"""Metrics without a reference."""


def floors_of(
    metrics: Sequence[Metric],
    real: Tensor,
    others: Tensor | None,
    others_are: str,
    counts: tuple[int, int],
    repeats: int,
    seed: int,
) -> Floors:
    """The real-vs-real baselines: the metrics for real images in place of generated ones.

    Args:
        metrics: which metrics.
        real, others: as for `measure`.
        counts: the sizes of the sets that the baselines are for.
    """
    note = "real vs real: a random split of the reference"
    if others is not None:
        note = f"real vs real: {others_are} in place of the generated images"
    found = Floors()

    def of(distance: Callable[[Tensor, Tensor], Measured]) -> Floor:
        made = floor(distance, real, others, counts, repeats, seed)
        return replace(made, notes=(note, *made.notes))

    for metric in metrics:
        if metric in DISTANCES:
            found[metric] = of(DISTANCES[metric])
    if "precision" in metrics:
        both = list[PrecisionRecall]()

        def precision(a: Tensor, b: Tensor) -> Measured:
            both.append(precision_recall(b, a))
            return both[-1].precision

        found["precision"] = of(precision)
        recalls = tuple(pair.recall.value for pair in both)  # reuses the slow distances
        found["recall"] = replace(found["precision"], value=float(np.mean(recalls)), values=recalls)
    return found


def _noted(measured: Measured) -> Measured:
    return replace(measured, notes=(*measured.notes, EQUAL_COUNTS))
