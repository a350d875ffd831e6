"""Pictures as cameras, scanners and other programs write them are good pictures."""

import io
import json
import struct
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from limner.apps.check_data.images import Looked, look
from limner.data import images
from limner.data.dataset import ImageError, Row, UnsupportedFormat
from limner.data.decoding import image_formats
from limner.data.decoding.decode_budget import BUDGET, DecodeBudget
from limner.data.decoding.image_formats import format_by_bytes
from limner.data.decoding.image_modes import orientation
from limner.data.decoding.png_chunks import without_texts
from limner.data.formats.folders import FolderImages
from limner.data.images import decode, open_rgb, upright_size


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + checksum


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG from its samples (PNG 1.2): kind 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    size = len(rows) // height
    filtered = b"".join(b"\0" + rows[i * size : (i + 1) * size] for i in range(height))
    body = chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(more) + body


def samples(*levels: int) -> bytes:
    """16-bit samples."""
    return struct.pack(f">{len(levels)}H", *levels)


def near(found: np.ndarray, wanted: object, levels: int = 1) -> bool:
    return int(np.abs(found.astype(int) - np.asarray(wanted)).max()) <= levels


# 16 bits


@pytest.mark.parametrize(("kind", "size"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_a_channel_keep_their_look(kind: int, size: int) -> None:
    level, opaque = 257 * 100, 65535
    pixel = samples(*[level] * (size - (kind >= 4)), *[opaque] * (kind >= 4))
    assert near(decode(png(8, 8, 16, kind, pixel * 64), 8), 100)


def test_16_bit_grey_with_transparency_is_laid_on_white() -> None:
    half = samples(257 * 100, 257 * 128)
    wanted = 255 + (100 - 255) * 128 / 255
    assert near(decode(png(8, 8, 16, 4, half * 64), 8), wanted)
    # One level that is transparent; the next one is not, though in 8 bits both are the same.
    row = samples(30_000, 30_001, 0, 65535, 30_000, 30_001, 0, 65535)
    image = decode(png(8, 8, 16, 0, row * 8, chunk(b"tRNS", samples(30_000))), 8)
    assert near(image[0, :, 0], [255, 117, 0, 255] * 2, 0)


def test_one_transparent_colour_in_16_bits() -> None:
    row = samples(*(257 * 200, 257 * 100, 257 * 50) * 4, *(257 * 9, 0, 0) * 4)
    transparent = chunk(b"tRNS", samples(257 * 200, 257 * 100, 257 * 50))
    image = decode(png(8, 8, 16, 2, row * 8, transparent), 8)
    assert near(image[0, :4], 255, 0)
    assert near(image[0, 4:], (9, 0, 0), 0)


def test_a_tiff_of_16_bits() -> None:
    levels = np.full((8, 8), 257 * 60, np.uint16)
    assert near(decode(encoded(Image.fromarray(levels), "TIFF"), 8), 60)


# Parts that are lost


def photo(**options: Any) -> bytes:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), "JPEG", quality=95, **options)


def with_zeros(data: bytes, first: int, last: int) -> bytes:
    return data[:first] + bytes(last - first) + data[last:]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0" + bytes(9)}])
def test_a_jpeg_of_which_a_part_is_lost_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    data = photo(**options)
    assert len(data) > 60_000
    for first, last, said in (
        (16384, 32768, r"a part is missing: 16,384 zeros at byte 16,384"),
        (8192 + 512, 8192 + 512 + 4096, r"a part is missing: 4,096 zeros"),
        (40_000, len(data), "truncated"),
    ):
        lost = with_zeros(data, first, last)
        for image in (lost, tmp_path / "a.jpg"):
            (tmp_path / "a.jpg").write_bytes(lost)
            with pytest.raises(ImageError, match=said):
                decode(image, 16)
    assert decode(data, 16).any()


def test_zeros_that_belong_to_a_jpeg_are_no_loss() -> None:
    # White paper in the shortest codes there are: the scan is all zeros.
    paper = encoded(Image.new("RGB", (4096, 4096), "white"), "JPEG", optimize=True)
    assert bytes(8192) in paper
    assert (decode(paper, 8) == 255).all()
    data = photo()
    assert decode(data + bytes(20_000), 8).any()  # filled up behind its end
    aligned = data + bytes(-len(data) % 512)
    assert decode(aligned + bytes(8192) + data, 8).any()
    # A camera's own notes, before the picture.
    notes = data[:2] + b"\xff\xe9\xf0\0" + bytes(0xF000 - 2) + data[2:]
    assert decode(notes, 8).any()


# EXIF


def exif_with(kind: int, count: int, value: bytes) -> bytes:
    """EXIF data with nothing but an orientation, of any type (TIFF 6.0, section 2)."""
    inline = len(value) <= 4
    entry = struct.pack(">HHI", 0x0112, kind, count) + (
        value.ljust(4, b"\0") if inline else struct.pack(">I", 26)
    )
    directory = struct.pack(">H", 1) + entry + bytes(4)
    return b"Exif\0\0MM\0*" + struct.pack(">I", 8) + directory + (b"" if inline else value)


def tiff_with(image: Image.Image, kind: int, count: int, value: bytes) -> bytes:
    """An uncompressed TIFF with an orientation of any type (TIFF 6.0, section 2)."""
    pixels = image.tobytes()
    behind = 8 + 2 + 10 * 12 + 4  # the directory
    short, long = struct.pack(">HH", 8, 8) + struct.pack(">H", 8), ">I"
    start = behind + len(short)
    entries = [
        *(
            (0x100, 4, 1, struct.pack(long, image.width)),
            (0x101, 4, 1, struct.pack(long, image.height)),
        ),
        *((0x102, 3, 3, struct.pack(long, behind)), (0x103, 3, 1, b"\0\1"), (0x106, 3, 1, b"\0\2")),
        (0x111, 4, 1, struct.pack(long, start)),
        (0x112, kind, count, value if len(value) <= 4 else struct.pack(long, start + len(pixels))),
        *((0x115, 3, 1, b"\0\3"), (0x116, 4, 1, struct.pack(long, image.height))),
        (0x117, 4, 1, struct.pack(long, len(pixels))),
    ]
    directory = struct.pack(">H", len(entries)) + b"".join(
        struct.pack(">HHI", tag, type_, number) + held.ljust(4, b"\0")
        for tag, type_, number, held in entries
    )
    return b"MM\0*" + struct.pack(long, 8) + directory + bytes(4) + short + pixels + value


ORIENTATIONS = {  # name -> (type, count, value, the turn that is meant)
    "short": (3, 1, b"\0\6", 6),
    "long": (4, 1, b"\0\0\0\6", 6),
    "text": (2, 2, b"6\0", 6),
    "words": (2, 16, b"Horizontal (up)\0", 1),
    "float": (11, 1, struct.pack(">f", 6.0), 6),
    "half": (11, 1, struct.pack(">f", 6.5), 1),
    "nan": (11, 1, struct.pack(">f", float("nan")), 1),
    "double": (12, 1, struct.pack(">d", 6.0), 6),
    "negative": (9, 1, struct.pack(">i", -6), 1),
    "too large": (3, 1, b"\0\x63", 1),
    "none": (3, 1, b"\0\0", 1),
    "fraction": (5, 1, struct.pack(">II", 6, 1), 6),
    "by zero": (5, 1, struct.pack(">II", 6, 0), 1),
    "byte": (1, 1, b"\6", 6),
    "undefined": (7, 4, b"\6\0\0\0", 1),
    "list": (3, 2, b"\0\6\0\1", 6),
    "empty": (2, 0, b"", 1),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("file", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_orientation_of_any_type_neither_crashes_nor_refuses(file: str, name: str) -> None:
    kind, count, value, turn = ORIENTATIONS[name]
    image = Image.new("RGB", (32, 16), "white")
    image.paste("red", (0, 0, 16, 16))  # the left half
    options = {"lossless": True} if file == "WEBP" else {"quality": 95} if file == "JPEG" else {}
    if file == "TIFF":
        data = tiff_with(image, kind, count, value)
    else:
        data = encoded(image, file, exif=exif_with(kind, count, value), **options)
    with Image.open(io.BytesIO(data)) as opened:
        assert orientation(opened) == turn
    upright = open_rgb(data)
    assert upright.size == ((16, 32) if turn == 6 else (32, 16))
    assert upright_size(data) == upright.size[::-1]
    assert near(np.asarray(upright)[2, 2], (255, 0, 0), 6)
    corner = (2, 13) if turn == 6 else (13, 2)  # turned, red is the upper half
    assert near(np.asarray(upright)[corner], (255, 0, 0), 6)


def test_exif_data_that_are_damaged_turn_nothing() -> None:
    image = Image.new("RGB", (32, 16), "red")
    for exif in (b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0" + b"\xff" * 40):
        assert open_rgb(encoded(image, "JPEG", exif=exif)).size == (32, 16)


# Texts in PNG files


def with_chunks(image: Image.Image, *chunks: bytes, at_end: bool = False) -> bytes:
    data = encoded(image)
    place = data.index(b"IEND") - 4 if at_end else data.index(b"IDAT") - 4
    return data[:place] + b"".join(chunks) + data[place:]


WORKFLOW = json.dumps({"nodes": list(range(400_000))}).encode()
TEXTS = {
    "plain": chunk(b"tEXt", b"workflow\0" + WORKFLOW) * 30,
    "compressed": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(WORKFLOW)),
    "international": chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(WORKFLOW)),
    "bomb": chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(50_000_000), 9)),
}


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_a_png_with_megabytes_of_text_is_a_good_picture(
    name: str, at_end: bool, tmp_path: Path
) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    data = with_chunks(image, TEXTS[name], at_end=at_end)
    (tmp_path / "a.png").write_bytes(data)
    for picture in (data, tmp_path / "a.png"):
        assert np.array_equal(decode(picture, 8), np.asarray(image))
        assert upright_size(picture) == (8, 8)


def test_what_turns_a_picture_stays_when_its_texts_go() -> None:
    image = Image.new("RGB", (32, 16), "red")
    exif = chunk(b"eXIf", exif_with(3, 1, b"\0\6")[6:])
    assert open_rgb(with_chunks(image, exif, TEXTS["compressed"])).size == (16, 32)


def test_a_long_colour_profile_in_a_png_is_used_and_an_absurd_one_ignored() -> None:
    from icc_profiles import in_srgb, rgb_profile

    from limner.data.decoding import color

    profile = rgb_profile("Display P3")
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    color.UNUSABLE.take()
    for length, wanted in ((2**21, in_srgb("Display P3", (200, 100, 50))), (2**23, (200, 100, 50))):
        long = struct.pack(">I", length) + profile[4:] + bytes(length - len(profile))
        packed = chunk(b"iCCP", b"P3\0\0" + zlib.compress(long))
        assert near(decode(with_chunks(image, packed), 8), wanted, 2)
    assert color.UNUSABLE.take() == 1
    stripped, info = without_texts(with_chunks(image, packed))
    assert len(stripped) < 2000
    assert info == {"icc_profile": None}


# Formats


def heic(image: Image.Image) -> bytes:
    pytest.importorskip("pillow_heif").register_heif_opener()
    return encoded(image, "HEIF", quality=95)


JXL = b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl \0\0\0\0jxl " + bytes(40)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf", "HEIC"),
        (b"\0\0\0\x1cftypheix\0\0\0\0mif1heicmiaf", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B", "AVIF"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "video"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "video"),
        (JXL, "JPEG XL"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\xff\xd8\xff\xe0", None),
        (b"\x89PNG\r\n\x1a\n", None),
        (b"", None),
    ],
)
def test_a_format_is_known_by_its_first_bytes(start: bytes, kind: str | None) -> None:
    assert format_by_bytes(start) == kind


def test_avif_is_read() -> None:
    image = decode(encoded(Image.new("RGB", (32, 32), (200, 40, 90)), "AVIF", quality=95), 16)
    assert near(image, (200, 40, 90), 8)


def test_heic_is_read_where_its_package_is(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic(Image.new("RGB", (64, 48), (200, 40, 90)))
    Image.OPEN.pop("HEIF", None)  # as in a process that met none yet
    image_formats.formats.cache_clear()
    assert "HEIF" not in image_formats.formats()
    assert near(decode(data, 16), (200, 40, 90), 8)
    assert upright_size(data) == (48, 64)
    assert "HEIF" in image_formats.formats()
    with pytest.raises(ImageError, match=r"a damaged HEIC picture.*remove its row"):
        decode(data[:200], 16)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """without(format, package): as where neither is installed."""

    def build(kind: str, package: str) -> None:
        image_formats.formats.cache_clear()
        monkeypatch.delitem(Image.OPEN, kind, raising=False)
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setattr(Image, "init", lambda: True)

    yield build  # type: ignore[misc]
    monkeypatch.undo()
    image_formats.formats.cache_clear()


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        ("HEIF", b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(60),
         r'HEIC .*pip install "limner\[heic\]".*convert it to JPEG'),
        ("AVIF", b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B" + bytes(60),
         r"AVIF .*pip install --upgrade pillow; or convert it to JPEG"),
        ("JXL", JXL, r"JPEG XL .*djxl a\.jxl a\.png"),
    ],
)  # fmt: skip
def test_what_is_not_read_here_says_what_would_read_it(
    kind: str, data: bytes, said: str, without: Callable[[str, str], None], tmp_path: Path
) -> None:
    without(kind, "pillow_heif")
    (tmp_path / "a.jpg").write_bytes(data)  # whatever it is called
    for image in (data, tmp_path / "a.jpg"):
        with pytest.raises(UnsupportedFormat, match=said) as caught:
            decode(image, 16)
        assert "not a picture" not in str(caught.value)


@pytest.mark.parametrize("ending", ["heic", "HEIF", "avif", "jxl"])
def test_files_of_these_formats_are_looked_for(ending: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{ending}").write_bytes(JXL)
    (tmp_path / "a.txt").write_text("a cat", encoding="utf-8")
    assert [row.key for row in FolderImages(tmp_path).rows] == [f"a.{ending}"]


def test_no_program_is_started_for_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow calls Ghostscript for PostScript, whatever the file is called."""
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("it was started"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ImageError, match="PostScript or PDF: convert it to PNG"):
        decode(eps, 8)


# Memory


def bomb(width: int, height: int) -> bytes:
    return png(width, height, 8, 0, bytes(width * height))


def test_too_many_pixels_are_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ImageError, match=r"\(1,600 pixels; the maximum is 1,000\)"):
        decode(bomb(40, 40), 8)


def test_threads_share_what_may_be_decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty pictures of 1 megapixel, of which two fit: never more than two at a time."""
    data, most = bomb(1000, 1000), 2 * 8_000_000
    monkeypatch.setattr(BUDGET, "limit", most)
    held: list[int] = []
    load = ImageFile.ImageFile.load

    def watched(self: ImageFile.ImageFile) -> Any:
        held.append(BUDGET.used)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", watched)
    found = [None] * 20

    def work(number: int) -> None:
        found[number] = decode(data, 8)  # type: ignore[call-overload]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(image is not None for image in found)
    assert held
    assert max(held) <= most
    assert BUDGET.used == 0


def test_what_is_decoded_for_its_size_counts_among_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG may say at its end how it is to be turned, and Pillow decodes it to know."""
    held: list[int] = []
    load = ImageFile.ImageFile.load

    def watched(self: ImageFile.ImageFile) -> Any:
        held.append(BUDGET.used)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", watched)
    data = bomb(400, 300)
    assert upright_size(data) == (300, 400)
    measured = len(held)
    assert measured
    pictures, row = SimpleNamespace(image=lambda row: data), Row("a.png", ("a",))
    looked = look(pictures, row, (64, 64), drawn=False)  # type: ignore[arg-type]
    assert isinstance(looked, Looked)
    assert (looked.width, looked.height) == (400, 300)
    assert len(held) > measured
    assert min(held) == 400 * 300 * images.BYTES_PER_PIXEL
    assert BUDGET.used == 0


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_damage_behind_the_first_picture_of_an_animation_is_told(kind: str) -> None:
    random = np.random.default_rng(0)
    frames = [Image.fromarray(random.integers(0, 256, (16, 16), dtype=np.uint8)) for _ in range(4)]
    whole = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    told = set()
    for cut in range(len(whole) // 5, len(whole), 11):
        data = whole[:cut]
        images, row = SimpleNamespace(image=lambda row, d=data: d), Row("a", ("a",))
        looked = look(images, row, (16, 16), drawn=False)  # type: ignore[arg-type]
        if isinstance(looked, Looked):
            told |= {fault.said for fault in looked.faults if fault.kind == "animated"}
    assert "damaged frames" in told


def test_a_png_with_long_texts_behind_its_pixels_is_checked() -> None:
    text = chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3_000_000)))
    plain = encoded(Image.new("RGBA", (16, 16), (9, 9, 9, 99)))
    end = plain.index(b"IEND") - 4
    data = plain[:end] + text + plain[end:]
    images, row = SimpleNamespace(image=lambda row: data), Row("a.png", ("a",))
    looked = look(images, row, (16, 16), drawn=False)  # type: ignore[arg-type]
    assert isinstance(looked, Looked)
    assert "transparent" in {fault.kind for fault in looked.faults}


def test_one_that_is_larger_than_all_is_decoded_alone() -> None:
    budget, order = DecodeBudget(10), list[str]()
    started = threading.Event()

    def large() -> None:
        started.set()
        with budget.hold(100):
            order.append("large")

    with budget.hold(1):
        thread = threading.Thread(target=large)
        thread.start()
        started.wait()
        order.append("small")
    thread.join()
    assert order == ["small", "large"]
    assert budget.used == 0


def test_a_picture_that_cannot_be_decoded_gives_its_share_back() -> None:
    with pytest.raises(ImageError):
        decode(bomb(64, 64)[:-40], 8)
    assert BUDGET.used == 0


def test_a_big_jpeg_counts_as_what_is_decoded_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("RGB", (2048, 2048)), "JPEG")
    sizes: list[int] = []
    hold = DecodeBudget.hold
    monkeypatch.setattr(
        DecodeBudget, "hold", lambda self, size: (sizes.append(size), hold(self, size))[1]
    )
    decode(data, 64)
    assert sizes == [256 * 256 * images.BYTES_PER_PIXEL]
