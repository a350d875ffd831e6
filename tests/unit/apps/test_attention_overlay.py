"""Maps of attention over a picture, as `limner watch` shows them."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from limner.apps.watch.explain import overlaid, pictures_of, scale
from limner.inference.word_attention import WordAttention


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def halves(left: str, right: str, side: int = 32) -> Image.Image:
    image = Image.new("RGB", (side, side), left)
    image.paste(right, (side // 2, 0, side, side))
    return image


def test_without_attention_the_picture_stays_recognisable() -> None:
    image = halves("black", "#808080")
    shown = pixels(overlaid(image, np.zeros((32, 32), np.float32)))
    assert (shown.max(axis=-1) == shown.min(axis=-1)).all(), "grey"
    black, grey = shown[0, 0, 0], shown[0, -1, 0]
    assert 60 < black < grey - 60


def test_with_attention_it_is_coloured_and_still_seen() -> None:
    image = halves("black", "white")
    shown = pixels(overlaid(image, np.ones((32, 32), np.float32)))
    assert (shown[..., 0] - shown[..., 2] > 50).all()
    assert shown[0, -1].sum() - shown[0, 0].sum() > 60


def test_the_scale_is_what_the_overlay_does() -> None:
    ramp = pixels(scale())[4]
    assert ramp[0].tolist() == [255] * 3
    distance = np.abs(ramp - 255).sum(axis=-1)
    assert (np.diff(distance) >= 0).all()
    assert np.unique(ramp, axis=0).shape[0] > 60
    white = Image.new("RGB", (8, 8), "white")
    half = pixels(overlaid(white, np.full((8, 8), 0.5, np.float32)))[0, 0]
    assert np.abs(ramp[63:65] - half).max() <= 3


def test_every_word_has_its_own_scale_and_says_its_ends() -> None:
    attention = WordAttention()
    weak = torch.tensor([0.0, 0.02, 0.02, 0.04])
    attention.add(torch.stack([torch.zeros(4), 10 * weak, weak, torch.full((4,), 0.1)]))
    words = [("strong", (1,)), ("weak", (2,)), ("alike", (3,))]
    strong, faint, alike = pictures_of(words, attention, [2, 2], Image.new("RGB", (16, 16), "grey"))
    assert strong["image"] == faint["image"], "the share says how much, the map where"
    assert strong["share"] == pytest.approx(10 * faint["share"])
    assert (faint["least"], faint["most"]) == (pytest.approx(0), pytest.approx(2))
    assert (alike["least"], alike["most"]) == (pytest.approx(1), pytest.approx(1))
    shown = pixels(Image.open(io.BytesIO(base64.b64decode(alike["image"]))))
    assert np.ptp(shown, axis=-1).max() <= 2, "nothing stands out"
