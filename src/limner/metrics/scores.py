"""Inception score and CLIP score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from limner.errors import LimnerError
from limner.metrics.interval import Measured, bootstrapped_mean


def inception_score(logits: Tensor, splits: int = 10, seed: int | None = 0) -> Measured:
    """exp(E_x KL(p(y | x) || p(y))): Salimans et al. 2016, arXiv 1606.03498, section 4.

    Mean and standard deviation over the splits, as published. The score is high if an ImageNet
    classifier is confident and finds many classes: for other images it means little.

    Args:
        logits: of Inception-v3 without the bias of its last layer, [N, 1008].
        splits: number of equal splits, each with its own p(y).
        seed: for shuffling the images before the split, since images in the order of their prompts
            would lack variety; None keeps the order, as ADM's evaluator does.

    Raises:
        LimnerError: fewer images than splits.
    """
    count = len(logits)
    if count < splits or count == 0:
        raise LimnerError(
            f"an Inception score with {splits} splits requires at least {splits} images; got "
            f"{count}"
        )
    logits = logits.double()
    if seed is not None:
        order = np.random.default_rng(seed).permutation(count)
        logits = logits[torch.from_numpy(order).to(logits.device)]
    values = []
    for i in range(splits):
        part = logits[i * count // splits : (i + 1) * count // splits]
        log_p = part.log_softmax(dim=1)
        log_mean = log_p.logsumexp(dim=0) - np.log(len(part))
        values.append(float((log_p.exp() * (log_p - log_mean)).sum(dim=1).mean().exp()))
    notes = []
    if count // splits < logits.shape[1]:
        notes.append(
            f"splits of {count // splits} images cannot cover {logits.shape[1]} classes: the score "
            "is biased downwards; compare it only at the same number of images"
        )
    return Measured(
        float(np.mean(values)),
        None,
        "none: the standard deviation is over the splits",
        std=float(np.std(values)),
        notes=tuple(notes),
    )


def clip_score(
    images: Tensor, texts: Tensor, prompts: Sequence[str] | None = None, seed: int = 0
) -> Measured:
    """Mean of max(100 cos(image, prompt), 0): Hessel et al. 2021, arXiv 2104.08718.

    Scaled by 100, as is usual for generators; the paper scales by 2.5. Prompts are used as they
    are, without the prefix "A photo depicts".

    Args:
        images, texts: CLIP embeddings of images and their prompts, [N, d] each, of any norm.
        prompts: [N]; images of the same prompt are resampled together.
        seed: of the bootstrap.

    Raises:
        LimnerError: the counts or widths differ.
    """
    if images.shape != texts.shape or (prompts is not None and len(prompts) != len(texts)):
        raise LimnerError(
            f"a CLIP score requires one prompt per image; got embeddings {list(images.shape)} and "
            f"{list(texts.shape)}"
        )
    similar = torch.nn.functional.cosine_similarity(images.double(), texts.double(), dim=1)
    values = (100 * similar).clamp(min=0).cpu().numpy()
    return bootstrapped_mean(values, prompts, seed)
