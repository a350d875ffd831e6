"""What a data set is like, as far as the choice of settings depends on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from limner.config import Config
from limner.data.buckets import visible
from limner.data.dataset import Streamed
from limner.data.image_sizes import BUILT_IN, shapes_of
from limner.data.open import open_image_dataset
from limner.data.order import evenly_spaced
from limner.data.split import split_rows
from limner.text.tokenizer import CaptionTokenizer

LOOKED_AT = 1000
"""Pictures whose sizes are read; of a far larger set, evenly spread."""
NEIGHBOURS = 64
"""The same of streamed pictures, one behind the other."""
READ = 10_000
"""Captions whose lengths are counted."""
COVERED = 99.5
"""Percentile of the captions that are to be read to their end."""
MOST_TOKENS = 256


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        trained, held_out: rows of each split.
        refused: rows without a picture or a caption; pictures that cannot be decoded are not yet
            among them.
        side: the median of the shorter sides, in pixels; None: drawn at any size.
        cropped: the share of a picture that a centred square leaves out, on average.
        tokens: of nearly all captions, with the start token; None: another encoder reads them.
        vocabulary: tokens that the built-in encoder would know; None: as above.
    """

    trained: int
    held_out: int
    refused: int
    side: int | None
    tokens: int | None
    cropped: float = 0.0
    vocabulary: int | None = None


def survey(config: Config) -> Survey:
    """Look at the data that a configuration names. Raises LimnerError if there are none."""
    dataset = open_image_dataset(config)
    trained, held_out = split_rows(dataset.rows, config.data.train_split, config.data.num_samples)
    rows = [dataset.rows[trained[i]] for i in evenly_spaced(len(trained), READ)]
    side, cropped = None, 0.0
    if dataset.name not in BUILT_IN:
        some = [rows[i] for i in evenly_spaced(len(rows), LOOKED_AT)]
        if isinstance(dataset, Streamed) and dataset.windowed:  # those far apart are far away
            some = list(dataset.rows[:NEIGHBOURS])
        shapes = shapes_of(dataset, some, None)
        known = shapes[shapes.min(axis=1) > 1]  # 1: the header could not be read
        if len(known):
            side = int(np.median(known.min(axis=1)))
            cropped = float(1 - visible(known, np.array([1, 1])).mean())
    tokens = vocabulary = None
    if config.text_encoder.pretrained_model_name is None:
        captions = [caption for row in rows for caption in row.captions]
        reader = CaptionTokenizer.learn(
            captions, config.text_encoder.vocab_size, max_length=MOST_TOKENS
        )
        vocabulary = reader.text_size
        lengths = [reader.length(caption) for caption in captions]
        tokens = min(MOST_TOKENS, int(np.ceil(np.percentile(lengths, COVERED))) + 1)
    refused = len(dataset.refused)
    return Survey(len(trained), len(held_out), refused, side, tokens, cropped, vocabulary)
