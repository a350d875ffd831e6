"""Colours come out as they are meant: profiles are applied; one of sRGB costs nothing."""

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icc_profiles import (
    PRIMARIES,
    cmyk_profile,
    faded_profile,
    grey_profile,
    in_srgb,
    lab_in_srgb,
    rgb_profile,
)
from PIL import Image, ImageCms

from limner.config import load_config
from limner.data.decoding import color
from limner.data.images import DECODING, as_rgb, decode, open_rgb
from limner.data.open import open_data

COLOURS = [
    (200, 100, 50),
    (90, 160, 60),
    (40, 80, 170),
    (128, 128, 128),
    (255, 255, 255),
    (0, 0, 0),
]
WIDE = [name for name in PRIMARIES if name != "sRGB"]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def colour_of(data: bytes) -> list[int]:
    image = decode(data, 8)
    assert (image == image[0, 0]).all()
    return image[0, 0].tolist()


@pytest.fixture(autouse=True)
def nothing_counted() -> None:
    color.UNUSABLE.take()


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_wide_space_becomes_srgb(kind: str, name: str, colour: tuple[int, int, int]) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = Image.new("RGB", (8, 8), colour)
    data = encoded(image, kind, icc_profile=rgb_profile(name), **options)
    wanted = in_srgb(name, colour)
    assert colour_of(data) == pytest.approx(wanted, abs=2)
    if max(colour) != min(colour):  # else it is the same in all of them
        assert max(abs(a - b) for a, b in zip(wanted, colour, strict=True)) > 5
    assert color.UNUSABLE.take() == 0


def test_the_wide_spaces_as_jpeg_and_avif() -> None:
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    for kind in ("JPEG", "AVIF"):
        data = encoded(image, kind, icc_profile=rgb_profile("Display P3"), quality=95)
        found = decode(data, 8).reshape(-1, 3).mean(0)
        assert found == pytest.approx(in_srgb("Display P3", (200, 100, 50)), abs=4)


def test_a_profile_of_srgb_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    datas = [encoded(image, icc_profile=profile) for profile in (own, rgb_profile("sRGB"))]
    assert all(np.array_equal(decode(data, 8), pixels) for data in datas)
    # Known from the first time, it is neither built nor applied again.
    for name in ("applyTransform", "buildTransform"):
        monkeypatch.setattr(ImageCms, name, lambda *_: pytest.fail("a profile was applied"))
    assert all(np.array_equal(decode(data, 8), pixels) for data in datas)


def test_transparency_is_laid_on_white_after_the_colours_are_converted() -> None:
    profile = rgb_profile("ProPhoto RGB")
    wanted = np.array(in_srgb("ProPhoto RGB", (90, 160, 60)))
    for alpha, kind in ((255, "PNG"), (128, "PNG"), (0, "PNG"), (128, "WEBP")):
        image = Image.new("RGBA", (8, 8), (90, 160, 60, alpha))
        options = {"lossless": True} if kind == "WEBP" else {}
        found = colour_of(encoded(image, kind, icc_profile=profile, **options))
        assert found == pytest.approx(255 + (wanted - 255) * alpha / 255, abs=2)


def test_a_large_transparent_picture_is_converted_in_strips(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("limner.data.decoding.image_modes._STRIP", 100)
    pixels = np.random.default_rng(0).integers(0, 256, (37, 20, 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    white = Image.new("RGBA", image.size, "white")
    assert np.array_equal(as_rgb(image), Image.alpha_composite(white, image).convert("RGB"))


def test_palettes_and_greys_have_profiles_too() -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    data = encoded(palette, icc_profile=rgb_profile("Adobe RGB"))
    assert colour_of(data) == pytest.approx(in_srgb("Adobe RGB", (200, 100, 50)), abs=2)
    level = in_srgb("ProPhoto RGB", (100, 100, 100))[0]  # of gamma 1.8
    for image in (
        Image.new("L", (8, 8), 100),
        Image.new("LA", (8, 8), (100, 255)),
        Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)),
    ):
        for profile in (grey_profile(1.8), rgb_profile("ProPhoto RGB")):
            found = colour_of(encoded(image, icc_profile=profile))
            assert found == pytest.approx([level] * 3, abs=2)
        assert colour_of(encoded(image, icc_profile=grey_profile(None))) == [100] * 3
    assert color.UNUSABLE.take() == 0


def test_print_is_converted_with_its_profile_and_without_one_as_ever() -> None:
    ink = (50.0, 40.0, -30.0)
    profile = cmyk_profile(ink)
    for kind, options in (("TIFF", {}), ("JPEG", {"quality": 100})):
        for inks, wanted in (
            ((0, 0, 0, 0), (255, 255, 255)),
            ((255, 0, 0, 0), lab_in_srgb(ink)),
            ((0, 0, 0, 255), lab_in_srgb(ink)),
        ):
            image = Image.new("CMYK", (16, 16), inks)
            data = encoded(image, kind, icc_profile=profile, **options)
            assert colour_of(data) == pytest.approx(wanted, abs=5), (kind, inks)
    plain = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert colour_of(encoded(plain, "TIFF")) == [0, 255, 255]


def test_white_and_black_stay_white_and_black() -> None:
    """Black point compensation: the darkest of the file becomes black, as photo programs do it."""
    profile = faded_profile(20)
    for level, wanted in ((0, 0), (255, 255)):
        data = encoded(Image.new("RGB", (8, 8), (level,) * 3), icc_profile=profile)
        assert colour_of(data) == pytest.approx([wanted] * 3, abs=1)
    middle = colour_of(encoded(Image.new("RGB", (8, 8), (128,) * 3), icc_profile=profile))
    assert lab_in_srgb((54, 0, 0))[0] < middle[0] < lab_in_srgb((60.2, 0, 0))[0]


def test_lab_is_read() -> None:
    lab = np.zeros((8, 8, 3), np.uint8)
    lab[:] = (round(50 * 2.55), 40, 256 - 30)  # a and b are signed, as in a TIFF
    image = Image.frombytes("LAB", (8, 8), lab.tobytes())
    assert np.asarray(as_rgb(image))[0, 0].tolist() == pytest.approx(
        lab_in_srgb((50, 40, -30)), abs=3
    )


BROKEN = {
    "cut off": rgb_profile("Display P3")[:200],
    "noise": bytes(range(256)) * 4,
    "of print": cmyk_profile((50, 0, 0)),
    "of another kind": b"acsp" * 40,
}


@pytest.mark.parametrize("profile", BROKEN.values(), ids=list(BROKEN))
def test_a_profile_that_cannot_be_used_is_ignored_and_counted(profile: bytes) -> None:
    data = encoded(Image.new("RGB", (8, 8), (200, 100, 50)), icc_profile=profile)
    assert colour_of(data) == [200, 100, 50]
    assert colour_of(data) == [200, 100, 50]
    assert color.UNUSABLE.take() == 2
    assert color.UNUSABLE.take() == 0


def test_a_profile_that_does_not_unpack_is_ignored_and_counted() -> None:
    good = encoded(Image.new("RGB", (8, 8), (9, 9, 9)), icc_profile=rgb_profile("Display P3"))
    at = good.index(b"iCCP")
    length = int.from_bytes(good[at - 4 : at], "big")
    body = b"x\0\0" + b"no zlib" + bytes(length - 10)
    crc = zlib.crc32(b"iCCP" + body).to_bytes(4, "big")
    bad = good[: at + 4] + body + crc + good[at + 8 + length :]
    assert colour_of(bad) == [9, 9, 9]
    assert color.UNUSABLE.take() == 1


def test_what_is_known_of_a_profile() -> None:
    def described(profile: bytes | None, mode: str = "RGB") -> str | None:
        options = {} if profile is None else {"icc_profile": profile}
        with Image.open(io.BytesIO(encoded(Image.new(mode, (4, 4)), "TIFF", **options))) as image:
            return color.profile_of(image)

    assert described(None) is None
    assert described(rgb_profile("sRGB")) is None
    assert described(rgb_profile("Display P3")) == "Display P3"
    assert described(cmyk_profile((50, 0, 0)), "CMYK") == "printer"
    assert described(BROKEN["noise"]) == "unusable"
    assert described(rgb_profile("Display P3"), "CMYK") == "unusable"


def test_the_number_of_this_way_of_decoding() -> None:
    assert DECODING == 2  # raise it when decoded pixels change, so that nothing old is used


def test_a_picture_that_is_scaled_before_it_is_converted_is_the_same() -> None:
    smooth = np.random.default_rng(0).integers(90, 170, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(smooth).resize((512, 512), Image.Resampling.BICUBIC)
    data = encoded(image, icc_profile=rgb_profile("Adobe RGB"))
    converted = open_rgb(data)
    assert converted.size == (512, 512)
    whole = np.asarray(converted.resize((64, 64), Image.Resampling.LANCZOS), int)
    assert np.abs(whole - decode(data, 64)).max() <= 3


def test_profiles_that_cannot_be_used_are_said_once_before_the_first_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(12):
        options = {"icc_profile": BROKEN["noise"]} if number < 3 else {}
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(tmp_path / f"{number}.png", **options)
        (tmp_path / f"{number}.txt").write_text(f"red {number}", encoding="utf-8")
    caplog.set_level("INFO", "limner")
    data = open_data(load_config(None, [f"data.dataset_path='{tmp_path}'"]))
    assert data.set.refused == []
    assert caplog.messages == [
        "3 pictures with an unusable colour profile, read as sRGB (limner check-data lists them)"
    ]
