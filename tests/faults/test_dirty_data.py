"""200 bad files and rows among 200 good ones change nothing but the list of what was refused."""

import io
import json
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared_runs import differing, elsewhere, run
from PIL import Image

from limner.config import Config
from limner.data import image_sizes, verify
from limner.data.formats.folders import MOST_CHARACTERS, FolderImages
from limner.data.images import DECODING
from limner.data.open import open_data
from limner.errors import LimnerError

Build = Callable[..., Config]
GOOD = 200


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def jpeg(image: Image.Image, **options: Any) -> bytes:
    data = io.BytesIO()
    image.convert(options.pop("mode", "RGB")).save(data, "JPEG", **options)
    return data.getvalue()


def bomb(side: int = 40_000) -> bytes:
    """A PNG of 1.6 gigapixels in a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0"))


def good_file(number: int, image: Image.Image) -> tuple[str, bytes]:
    """Ordinary pictures, and every kind that is odd and can be read."""
    kinds: list[Callable[[], tuple[str, bytes]]] = [
        lambda: ("png", png(image)),
        lambda: ("jpg", jpeg(image)),
        lambda: ("jpg", jpeg(image, mode="CMYK")),
        lambda: (
            "png",
            png(Image.fromarray(np.asarray(image.convert("L")).astype("uint16") * 257)),
        ),
        lambda: ("png", png(image.quantize(16))),
        lambda: ("png", png(image.convert("RGBA"))),
        lambda: ("jpg", jpeg(image, exif=_turned())),
        lambda: ("gif", _animation(image)),
        lambda: ("jpg", png(image)),  # mislabelled: what it is counts, not what it is called
    ]
    return kinds[number % len(kinds)]()


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _animation(image: Image.Image) -> bytes:
    data = io.BytesIO()
    other = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image.save(data, "GIF", save_all=True, append_images=[other])
    return data.getvalue()


def picture_of(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((28, 20), Image.Resampling.BICUBIC)


def bad_row(number: int, folder: Path) -> Any:
    """A row that cannot be used, of one of twenty kinds, its file written if it has one."""
    name = f"bad/{number:03}"
    caption, whole = f"bad {number}", jpeg(picture_of(number + 1000).resize((120, 90)))
    files: list[tuple[str, bytes]] = [
        ("jpg", whole[: len(whole) // 2]),  # truncated
        ("png", png(picture_of(number))[:600]),
        ("jpg", b""),  # zero bytes
        ("jpg", bytes(2000)),  # an interrupted download
        ("png", b"<!doctype html><html>not found</html>"),
        ("jpg", b"just words"),
        ("png", bomb()),  # a decompression bomb
        ("jpg", b"\x00\x00\x00\x18ftypheic" + bytes(64)),  # a kind that is not supported
        ("png", b"MZ" + np.random.default_rng(number).bytes(400)),
    ]
    kind = number % 20
    if kind < len(files):
        extension, data = files[kind]
        (folder / f"{name}.{extension}").write_bytes(data)
        return {"image": f"{name}.{extension}", "text": caption}
    here = f"{name}.png"
    (folder / here).write_bytes(png(picture_of(number)))
    rows: list[Any] = [
        {"image": f"gone/{number}.png", "text": caption},  # missing
        {"image": here, "text": ""},  # captions: empty, huge, not UTF-8, no text
        {"image": here, "text": " \n\t "},
        {"image": here, "text": "word " * MOST_CHARACTERS},
        {"image": here, "text": "caf\udce9"},
        {"image": here, "text": number},
        {"image": f"/etc/{number}.png", "text": caption},  # paths that lead out of the folder
        {"image": f"../{number}.png", "text": caption},
        {"image": f"C:\\pictures\\{number}.png", "text": caption},
        {"image": f"{name}.exe", "text": caption},  # no picture by its name
        {"picture": here, "text": caption},  # no path at all
    ]
    return rows[kind - len(files)]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Good rows alone; and the same with as many bad ones among them, in the same order."""
    chosen = random.Random(0)
    alone, mixed = tmp_path / "alone", tmp_path / "mixed"
    for folder in (alone, mixed):
        (folder / "good").mkdir(parents=True)
    (mixed / "bad").mkdir()
    rows: list[Any] = []
    for number in range(GOOD):
        extension, data = good_file(number, picture_of(number))
        for folder in (alone, mixed):
            (folder / "good" / f"{number:03}.{extension}").write_bytes(data)
        rows.append({"image": f"good/{number:03}.{extension}", "text": f"picture {number}"})
    everything = list(rows)
    for number in range(180):
        everything.insert(chosen.randrange(len(everything) + 1), bad_row(number, mixed))
    everything += [dict(rows[chosen.randrange(GOOD)]) for _ in range(20)]  # duplicates
    for folder, written in ((alone, rows), (mixed, everything)):
        text = json.dumps(written, ensure_ascii=False)
        (folder / "metadata.json").write_bytes(text.encode("utf-8", errors="surrogateescape"))
    return alone, mixed


def config_for(folder: Path, build: Build, *words: str) -> Config:
    settings = ["data.dataset_name=null", f"data.dataset_path='{folder}'", "data.num_samples=null"]
    return build(*settings, "training.num_workers=2", "training.max_steps=60", *words)


@pytest.mark.parametrize("num_samples", ["null", "120"])
def test_training_is_that_on_the_good_rows_alone(
    num_samples: str, folders: tuple[Path, Path], tiny_config: Build
) -> None:
    alone, mixed = folders
    words = ["training.save_steps=60", "training.heldout_steps=60", "training.logging_steps=20"]
    words += [f"data.num_samples={num_samples}", "data.refused_limit=1"]
    one = run(elsewhere(config_for(alone, tiny_config, *words), "one"))
    two = run(elsewhere(config_for(mixed, tiny_config, *words), "two"))
    assert differing(one / "checkpoint-60", two / "checkpoint-60") == []
    if num_samples != "null":
        return
    lines = (two / "refused.jsonl").read_text(encoding="utf-8").splitlines()
    listed = [json.loads(line) for line in lines]
    assert len(listed) == 200
    assert all(set(row) == {"key", "reason"} and len(row["reason"]) > 15 for row in listed)
    assert not (one / "refused.jsonl").read_text(encoding="utf-8")
    reasons = "\n".join(row["reason"] for row in listed)
    for kind in (
        "cannot be decoded",
        "the file is empty (0 bytes)",
        "only zero bytes",
        "a web page",
        "is text, not a picture",
        "too many pixels to decode safely",
        "HEIC",
        "not a picture in a supported format",
        "'gone' is not there",
        "the caption is empty",
        "50,000 characters",
        "byte 0xe9 is not valid UTF-8",
        "not text",
        "leads out of the folder",
        "not a picture extension",
        "there is no 'image'",
        "stand in an earlier row",
    ):
        assert kind in reasons


def test_more_than_the_limit_ends_the_run_before_it_begins(
    folders: tuple[Path, Path], tiny_config: Build
) -> None:
    config = config_for(folders[1], tiny_config, "data.refused_limit=0.4")
    with pytest.raises(LimnerError, match=r"200 of 400 rows .*50%, more than data\.refused_limit"):
        run(config)
    listed = Path(config.training.output_dir, "refused.jsonl").read_text(encoding="utf-8")
    assert len(listed.splitlines()) == 200


def test_good_files_are_remembered_and_changed_ones_looked_at_again(
    folders: tuple[Path, Path],
    tiny_config: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verify, "REMEMBERED_FROM", 100)
    monkeypatch.setattr(verify, "RACY_NS", 0)
    words = [f"cache.folder='{tmp_path / 'cache'}'"]
    config = config_for(folders[0], tiny_config, *words)
    seen: list[str] = []

    def load(self: Any, row: Any, size: int) -> np.ndarray:
        seen.append(row.key)
        return original(self, row, size)

    from limner.data.formats.folders import FolderImages

    original = FolderImages.load
    monkeypatch.setattr(FolderImages, "load", load)
    assert len(open_data(config).set.rows) == 200
    assert len(seen) == 200
    seen.clear()
    assert len(open_data(config).set.rows) == 200
    assert seen == []
    row = open_data(config).set.rows[7]
    (folders[0] / row.key).write_bytes(b"spoilt since")
    assert row.key not in [r.key for r in open_data(config).set.rows]
    assert seen == [row.key]
    assert verify.DECODED_BY.endswith(f" {DECODING}")  # what was good may be no more
    monkeypatch.setattr(verify, "DECODED_BY", "another way to decode")
    seen.clear()
    assert len(open_data(config).set.rows) == 199
    assert len(seen) == 200
    (tmp_path / "cache" / "checked.npy").write_bytes(b"no array")
    assert len(open_data(config).set.rows) == 199
    dataset = open_data(config).set
    signatures = {verify.signature_of(dataset, row)[0] for row in dataset.rows}
    assert None not in signatures
    assert len(signatures) == 199


@pytest.mark.parametrize("what", ["checked", "measured"])
def test_what_was_looked_at_before_an_interruption_is_not_looked_at_again(
    what: str,
    folders: tuple[Path, Path],
    tiny_config: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (verify, image_sizes):
        monkeypatch.setattr(module, "REMEMBERED_FROM", 100)
    monkeypatch.setattr(verify, "RACY_NS", 0)
    monkeypatch.setattr(verify, "AT_ONCE", 10)
    config = config_for(folders[0], tiny_config, f"cache.folder='{tmp_path / 'cache'}'")
    asked: list[object] = []
    written: list[object] = []
    stops = True

    def counting(look: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*words: Any) -> Any:
            asked.append(words)
            if stops and len(asked) == 150:
                raise KeyboardInterrupt
            return look(*words)

        return counted

    def look() -> None:
        found = FolderImages(folders[0])
        if what == "checked":
            verify.remove_undecodable(found, config)
        else:
            image_sizes.shapes_of(found, found.rows, tmp_path / "cache")

    monkeypatch.setattr(FolderImages, "load", counting(FolderImages.load))
    monkeypatch.setattr(image_sizes, "upright_size", counting(image_sizes.upright_size))
    with pytest.raises(KeyboardInterrupt):
        look()
    stops = False
    asked.clear()
    look()
    assert 0 < len(asked) <= 100
    # A kill leaves no time for that: it is written in between.
    for module in (verify, image_sizes):
        monkeypatch.setattr(module, "SAVE_EVERY", 0)
        monkeypatch.setattr(module, "save_array", lambda *words: written.append(words))
    shutil.rmtree(tmp_path / "cache")
    look()
    assert len(written) > 10
