"""Any picture file becomes an upright square of RGB on white, or an error that names it."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limner.data.dataset import ImageError
from limner.data.images import decode, open_rgb, to_pil, to_tensor

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def quadrants(size: int) -> Image.Image:
    """Red, green / blue, white."""
    image = np.full((size, size, 3), 255, np.uint8)
    half = size // 2
    image[:half, :half], image[:half, half:], image[half:, :half] = RED, GREEN, BLUE
    return Image.fromarray(image)


def corners(image: np.ndarray) -> list[tuple[int, ...]]:
    low, high = image.shape[0] // 4, 3 * image.shape[0] // 4
    return [tuple(image[y, x].tolist()) for y in (low, high) for x in (low, high)]


def near(found, wanted, levels=6) -> bool:
    return int(np.abs(np.asarray(found, int) - np.asarray(wanted, int)).max()) <= levels


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_picture_of_the_right_size_passes_untouched():
    image = noise(16, 16)
    assert np.array_equal(decode(encoded(Image.fromarray(image)), 16), image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright(orientation):
    # Each value with how a camera stores a picture that is upright once turned (EXIF 2.3, 4.6.4).
    stored_as = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    upright = np.asarray(quadrants(64))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(stored_as[orientation](upright)))
    for data in (encoded(stored, exif=exif), encoded(stored, "JPEG", exif=exif, quality=95)):
        assert near(corners(decode(data, 32)), [RED, GREEN, BLUE, WHITE])


@pytest.mark.parametrize("size", [(60, 20), (20, 60)])
def test_center_crop_keeps_the_middle_and_pad_keeps_everything(size):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, :20], wide[:, 20:40], wide[:, 40:] = RED, GREEN, BLUE
    image = wide if size == (60, 20) else wide.transpose(1, 0, 2)
    data = encoded(Image.fromarray(np.ascontiguousarray(image)))
    assert (decode(data, 20) == GREEN).all()
    padded = decode(data, 30, crop="pad")
    padded = padded if size == (60, 20) else padded.transpose(1, 0, 2)
    assert near(padded[15, [4, 15, 25]], [RED, GREEN, BLUE])
    assert (padded[:9] == 255).all()
    assert (padded[21:] == 255).all()


def test_scaling_down_averages_and_does_not_alias():
    lines = np.zeros((256, 256, 3), np.uint8)
    lines[:, ::2] = 255  # one pixel black, one white: grey from afar, stripes if pixels are skipped
    assert near(decode(encoded(Image.fromarray(lines)), 32), 128)


def test_a_thin_strip_is_cropped_before_it_is_enlarged():
    strip = Image.new("RGB", (20_000, 1), RED)  # scaled whole, to 64 high, it would take 246 MB
    assert (decode(encoded(strip), 64) == RED).all()
    assert decode(encoded(strip), 64, crop="pad").shape == (64, 64, 3)


def test_big_jpegs_decode_at_a_fraction_and_look_the_same():
    smooth = Image.fromarray(noise(8, 8)).resize((2048, 2048), Image.Resampling.BICUBIC)
    data = encoded(smooth, "JPEG", quality=95)
    whole = open_rgb(data).resize((64, 64), Image.Resampling.LANCZOS)
    assert open_rgb(data, shorter_side=64).size == (256, 256)
    assert near(decode(data, 64), np.asarray(whole), levels=4)


def test_transparency_is_laid_on_white():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, :4] = (255, 0, 0, 255)
    rgba[:, 4:] = (0, 0, 0, 128)
    image = decode(encoded(Image.fromarray(rgba)), 8)
    assert near(image[0, 0], RED, 0)
    assert near(image[0, 7], (127, 127, 127), 1)
    grey = decode(encoded(Image.fromarray(rgba).convert("LA")), 8)
    assert near(grey[0, 7], (127, 127, 127), 1)


def test_palette_with_a_transparent_colour():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 0, 0, 0, 255])
    image.paste(1, (4, 0, 8, 8))
    picture = decode(encoded(image, transparency=0), 8)
    assert (picture[:, :4] == WHITE).all()
    assert (picture[:, 4:] == BLUE).all()


@pytest.mark.parametrize(("level", "wanted"), [(0, 0), (257 * 100, 100), (65535, 255), (300, 1)])
def test_16_bit_grey_is_scaled_not_clipped(level, wanted):
    levels = np.full((8, 8), level, np.uint16)
    assert (decode(encoded(Image.fromarray(levels)), 8) == wanted).all()
    assert (decode(encoded(Image.fromarray(levels.astype(np.int32)), "TIFF"), 8) == wanted).all()


def test_levels_without_a_known_white_are_refused():
    for levels in (np.full((8, 8), 0.5, np.float32), np.full((8, 8), 1 << 20, np.int32)):
        with pytest.raises(ImageError, match="white is not defined"):
            decode(encoded(Image.fromarray(levels), "TIFF"), 8)


def test_grey_bilevel_and_cmyk_become_rgb():
    assert (decode(encoded(Image.new("L", (8, 8), 77)), 8) == 77).all()
    assert (decode(encoded(Image.new("1", (8, 8), 1)), 8) == 255).all()
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert near(decode(encoded(cyan, "JPEG", quality=95), 8), (0, 255, 255))


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(data, 8) == RED).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (bytes(1000), "zero bytes"),
        ("ein Apfel, größer".encode(), "is text.*'ein Apfel"),
        (b"\n<!DOCTYPE html><html>404</html>", "web page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG.*convert"),
        (bytes(range(128, 256)) * 4, "not a picture"),
        (encoded(Image.fromarray(noise(64, 64)), "JPEG")[:-800], "truncated"),
        (encoded(Image.fromarray(noise(64, 64)))[:-800], "truncated"),
    ],
)
def test_what_is_no_picture_is_named_with_the_reason_and_the_fix(tmp_path: Path, data, reason):
    path = tmp_path / "bad.jpg"
    path.write_bytes(data)
    for image in (path, data):
        with pytest.raises(ImageError, match=f"(?s)^row 7: .*{reason}.*remove its row"):
            decode(image, 16, name="row 7")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path):
    with pytest.raises(ImageError, match=r"gone\.png: the picture file is not there"):
        decode(tmp_path / "gone.png", 16)
    with pytest.raises(ImageError, match=r"^x\.png: the file cannot be read"):
        decode(tmp_path, 16, name="x.png")


def test_a_decompression_bomb_is_an_error_before_it_is_decoded():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))
    with pytest.raises(
        ImageError, match=r"^row 7: .*too many pixels to decode safely.*Scale it down"
    ):
        decode(bomb, 16, name="row 7")


def test_oddities_that_pillow_can_read_are_not_warned_of(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    assert decode(encoded(Image.new("RGB", (8, 8), RED)), 8).shape == (8, 8, 3)
    assert not recwarn.list


def test_tensors_and_back_is_the_same_picture():
    batch = np.stack([noise(8, 6), 255 - noise(8, 6)])
    tensor = to_tensor(batch)
    assert tensor.shape == (2, 3, 8, 6)
    assert tensor.dtype == torch.float32
    assert to_tensor(np.array([[[0, 255, 51]]], np.uint8)).flatten().tolist() == pytest.approx(
        [-1, 1, -0.6]
    )
    images = to_pil(tensor)
    assert isinstance(images, list)
    assert np.array_equal(np.stack([np.asarray(image) for image in images]), batch)


def test_to_pil_rounds_to_nearest_and_clamps():
    tensor = torch.tensor([-3.0, 3.0, 0.49 / 127.5 - 1, 0.51 / 127.5 - 1]).expand(3, 1, 4)
    assert np.asarray(to_pil(tensor[None])[0])[0, :, 0].tolist() == [0, 255, 0, 1]
