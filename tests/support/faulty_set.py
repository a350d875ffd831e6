"""A made-up data set of 1,000 rows, 100 of which have a fault of one of 36 kinds; seeded."""

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from icc_profiles import rgb_profile
from PIL import Image

from limner.data.builtin.emoji import EmojiImages
from limner.data.split import is_held_out

ROWS, SIDE, TRAIN_SPLIT = 1000, 128, 0.95

PLANTED = {  # kind -> how many rows, how
    "split-leak": (5, "the bytes of a trained picture again, under a name that is held out"),
    "near-split-leak": (4, "a trained picture scaled up, under a name that is held out"),
    "missing-file": (4, "the row stands, the file does not"),
    "not-a-picture": (4, "a web page, an empty file, text, zeros"),
    "unsupported-format": (2, "JPEG XL, under its own name and another one"),
    "path-refused": (2, "a path out of the folder, one with NUL in it"),
    "truncated": (4, "the last third of the file is gone"),
    "unreadable": (3, "the PNG's pixels are overwritten, checksums mended"),
    "too-many-pixels": (3, "a PNG that says it has 60,000 x 60,000 pixels"),
    "empty-caption": (4, "white space"),
    "wrong-encoding": (1, "a byte of Latin-1"),
    "control-characters": (1, "a NUL"),
    "unusable-row": (3, "no key 'text', a number, broken JSON"),
    "repeated-row": (3, "an earlier line again"),
    "conflicting-captions": (4, "an earlier picture under another name with another caption"),
    "duplicate": (4, "an earlier picture, saved anew without loss, with the same caption"),
    "near-duplicate": (4, "an earlier picture scaled, or as a JPEG, with another caption"),
    "blank": (4, "one colour"),
    "tiny-picture": (2, "24 pixels, where 128 are trained"),
    "small-picture": (4, "96 pixels"),
    "extreme-ratio": (3, "three and more times as wide as high"),
    "wrong-extension": (4, "a PNG called .jpg, a JPEG called .png"),
    "caption-placeholder": (3, "untitled, null, {caption}"),
    "caption-file-name": (3, "IMG_1234, a.jpg, a hash"),
    "caption-url": (2, "a web address"),
    "caption-html": (2, "a tag, an entity"),
    "caption-mojibake": (3, "UTF-8 read as Windows-1252"),
    "caption-boilerplate": (2, "of a shop, of a chat model"),
    "caption-repeats": (2, "a captioner's loop"),
    "caption-cut": (3, "a list of things"),
    "damaged-profile": (1, "a colour profile that is cut off"),
    "animated": (2, "a GIF of two frames"),
    "transparent": (2, "a PNG with a hole"),
    "grey": (1, "mode L"),
    "sixteen-bit": (1, "mode I;16"),
    "colour-profile": (1, "Display P3"),
}
UNREFERENCED = 3
"""Picture files that no row names: on top of the 100, as they are no rows."""


def faulty_set(folder: Path) -> set[tuple[str, str]]:
    """Writes the set; returns the (kind, key) of each fault."""
    return _Planting(folder).everything()


class _Planting:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "images").mkdir(parents=True)
        self.emoji = EmojiImages("all", ["en"])
        # Twemoji draws all families alike, and some flags: these would be faults of their own.
        self.unused = iter(
            row
            for row in self.emoji.rows
            if not row.key.startswith("1f1")
            and not any(word in row.captions[0] for word in ("family", "adult", "pouting"))
        )
        self.lines: list[str] = []
        self.good: list[tuple[str, str]] = []  # (key, caption) of plain trained rows
        self.planted: set[tuple[str, str]] = set()
        self.number = 0

    def everything(self) -> set[tuple[str, str]]:
        total = sum(count for count, _ in PLANTED.values())
        assert total == 100
        for _ in range(ROWS - total):
            array, caption = self.drawing()
            key = self.key(".png", held_out=None)
            self.save(Image.fromarray(array), key)
            self.row(key, caption)
            if not is_held_out(key, TRAIN_SPLIT):
                self.good.append((key, caption))
        originals = iter(self.good)
        for kind, (count, _) in PLANTED.items():
            plant: Callable[[int, Iterator[tuple[str, str]]], str]
            plant = getattr(self, kind.replace("-", "_"), None) or getattr(self, kind.split("-")[0])
            for n in range(count):
                if plant == getattr(self, "caption", None):
                    self.planted.add((kind, self.caption(kind, n)))
                else:
                    self.planted.add((kind, plant(n, originals)))
        for n in range(UNREFERENCED):
            key = f"images/forgotten{n}.png"
            self.save(Image.fromarray(self.drawing()[0]), key)
            self.planted.add(("unreferenced-file", key))
        text = "\n".join(self.lines)
        data = (text + "\n").encode("utf-8", errors="surrogateescape")
        (self.folder / "metadata.jsonl").write_bytes(data)
        assert len(self.lines) == ROWS
        return self.planted

    # ---- what rows are made of

    def drawing(self, side: int = SIDE) -> tuple[np.ndarray, str]:
        row = next(self.unused)
        return self.emoji.load(row, side), row.captions[0]

    def key(self, suffix: str, held_out: bool | None = False) -> str:
        """A new name; `held_out`: which part of the split it falls into."""
        while True:
            self.number += 1
            key = f"images/{self.number:06d}{suffix}"
            if held_out is None or is_held_out(key, TRAIN_SPLIT) == held_out:
                return key

    def save(self, image: Image.Image, key: str, **how: object) -> None:
        image.save(self.folder / key, **how)

    def row(self, key: str, caption: object) -> None:
        self.lines.append(json.dumps({"file_name": key, "text": caption}, ensure_ascii=False))

    def image_of(self, key: str) -> Image.Image:
        return Image.open(self.folder / key).convert("RGB")

    def plain(self, suffix: str = ".png", side: int = SIDE) -> tuple[str, Image.Image]:
        """A row with a drawing and its caption; the picture is still to be saved."""
        array, caption = self.drawing(side)
        key = self.key(suffix)
        self.row(key, caption)
        return key, Image.fromarray(array)

    # ---- one for each kind

    def split_leak(self, n: int, originals: Iterator[tuple[str, str]]) -> str:
        key, (original, caption) = self.key(".png", held_out=True), next(originals)
        (self.folder / key).write_bytes((self.folder / original).read_bytes())
        self.row(key, caption if n % 2 else f"{caption}, once more")
        return key

    def near_split_leak(self, n: int, originals: Iterator[tuple[str, str]]) -> str:
        key, (original, caption) = self.key(".png", held_out=True), next(originals)
        self.save(self.image_of(original).resize((200, 200), Image.Resampling.BICUBIC), key)
        self.row(key, f"{caption}, larger")
        return key

    def missing_file(self, n: int, originals: object) -> str:
        key = self.key(".png")
        self.row(key, self.drawing()[1])
        return key

    def not_a_picture(self, n: int, originals: object) -> str:
        key = self.key(".jpg")
        content = (b"<!DOCTYPE html><html>404</html>", b"", b"a cat", bytes(900))
        (self.folder / key).write_bytes(content[n])
        self.row(key, self.drawing()[1])
        return key

    def unsupported_format(self, n: int, originals: object) -> str:
        key = self.key((".jxl", ".jpg")[n])
        (self.folder / key).write_bytes(b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(range(200)))
        self.row(key, self.drawing()[1])
        return key

    def path_refused(self, n: int, originals: object) -> str:
        image, key = (("../secret.png", "../secret.png"), ("a\0b.png", "a\\x00b.png"))[n]
        self.row(image, "a secret")
        return key

    def wrong_encoding(self, n: int, originals: object) -> str:
        key, image = self.plain()
        self.save(image, key)
        self.lines[-1] = json.dumps({"file_name": key, "text": "caf\udce9"}, ensure_ascii=False)
        return key

    def control_characters(self, n: int, originals: object) -> str:
        key, image = self.plain()
        self.save(image, key)
        self.lines[-1] = json.dumps({"file_name": key, "text": "a\0cat"})
        return key

    def truncated(self, n: int, originals: object) -> str:
        key, image = self.plain((".png", ".jpg")[n % 2])
        self.save(image, key)
        data = (self.folder / key).read_bytes()
        (self.folder / key).write_bytes(data[: len(data) * 2 // 3])
        return key

    def unreadable(self, n: int, originals: object) -> str:
        key, image = self.plain()
        self.save(image, key)
        _rewrite_chunk(self.folder / key, b"IDAT", lambda data: b"\x78\x9c" + b"\xff" * len(data))
        return key

    def too_many_pixels(self, n: int, originals: object) -> str:
        key, image = self.plain()
        self.save(image, key)
        huge = struct.pack(">II", 60_000, 60_000)
        _rewrite_chunk(self.folder / key, b"IHDR", lambda data: huge + data[8:])
        return key

    def empty_caption(self, n: int, originals: object) -> str:
        key = self.key(".png")
        self.save(Image.fromarray(self.drawing()[0]), key)
        self.row(key, " \t"[: 1 + n % 2])
        return key

    def unusable_row(self, n: int, originals: object) -> str:
        line = len(self.lines) + 1
        key = self.key(".png")
        bad = (
            (json.dumps({"file_name": key, "words": "a cat"}), key),
            (json.dumps({"file_name": key, "text": 7}), key),
            ('{"file_name": "images/a.png", "text": "a cat"', f"metadata.jsonl, line {line}"),
        )[n]
        if bad[1] == key:
            self.save(Image.fromarray(self.drawing()[0]), key)
        self.lines.append(bad[0])
        return bad[1]

    def repeated_row(self, n: int, originals: Iterator[tuple[str, str]]) -> str:
        key, caption = next(originals)
        self.row(key, caption)
        return key

    def conflicting_captions(self, n: int, originals: Iterator[tuple[str, str]]) -> str:
        key, (original, _) = self.key(".png"), next(originals)
        self.save(self.image_of(original), key, compress_level=n)
        self.row(key, f"something else, number {'abcde'[n]}")
        return key

    def duplicate(self, n: int, originals: Iterator[tuple[str, str]]) -> str:
        key, (original, caption) = self.key((".png", ".bmp")[n % 2]), next(originals)
        self.save(self.image_of(original), key)
        self.row(key, caption.upper() if n == 3 else caption)
        return key

    def near_duplicate(self, n: int, originals: Iterator[tuple[str, str]]) -> str:
        original, caption = next(originals)
        image = self.image_of(original)
        if n % 2:
            key = self.key(".jpg")
            self.save(image.resize((384, 384), Image.Resampling.LANCZOS), key, quality=90)
        else:
            key = self.key(".webp")
            self.save(image.resize((160, 160), Image.Resampling.BILINEAR), key, quality=95)
        self.row(key, f"{caption}, again")
        return key

    def blank(self, n: int, originals: object) -> str:
        key = self.key(".png")
        self.save(Image.new("RGB", (SIDE, SIDE), ("white", "black", "#08f", "white")[n]), key)
        self.row(key, self.drawing()[1])
        return key

    def tiny_picture(self, n: int, originals: object) -> str:
        key, image = self.plain(side=24)
        self.save(image, key)
        return key

    def small_picture(self, n: int, originals: object) -> str:
        key, image = self.plain(side=96)
        self.save(image, key)
        return key

    def extreme_ratio(self, n: int, originals: object) -> str:
        key, image = self.plain()
        wide = Image.new("RGB", (SIDE * (3 + n), SIDE), "white")
        wide.paste(image, (SIDE * n, 0))
        self.save(wide if n % 2 else wide.transpose(Image.Transpose.ROTATE_90), key)
        return key

    def wrong_extension(self, n: int, originals: object) -> str:
        key, image = self.plain((".jpg", ".png", ".webp", ".gif")[n])
        self.save(image, key, format=("PNG", "JPEG", "PNG", "JPEG")[n])
        return key

    def caption(self, kind: str, n: int) -> str:
        array, caption = self.drawing()
        key = self.key(".png")
        self.save(Image.fromarray(array), key)
        things = [row.captions[0] for row in self.emoji.rows[n::41]]
        texts = {
            "caption-placeholder": ("Untitled", "null", "a photo of {caption}"),
            "caption-file-name": (
                "IMG_1234",
                "holiday-in-rome.JPG",
                "9f86d081884c7d659a2feaa0",
            ),
            "caption-url": (f"{caption} https://example.com/p?id=7", "www.example.com/cats"),
            "caption-html": (f"<b>{caption}</b>", f"{caption} &amp; more"),
            "caption-mojibake": tuple(
                text.encode("utf-8").decode("cp1252")
                for text in ("a café at night", "déjà vu – a red house", "ein grüner Fluß")
            ),
            "caption-boilerplate": (
                f"{caption}, royalty-free stock photo",
                "I'm sorry, I can't help with this picture",
            ),
            "caption-repeats": ("a man in a a a a hat", "red and blue and blue and blue and white"),
            "caption-cut": tuple(", ".join(things) for _ in range(3)),
        }
        self.row(key, texts[kind][n])
        return key

    def damaged_profile(self, n: int, originals: object) -> str:
        key, image = self.plain()
        self.save(image, key, icc_profile=rgb_profile("Display P3")[:200])
        return key

    def colour_profile(self, n: int, originals: object) -> str:
        key, image = self.plain()
        self.save(image, key, icc_profile=rgb_profile("Display P3"))
        return key

    def animated(self, n: int, originals: object) -> str:
        key, image = self.plain(".gif")
        self.save(image, key, save_all=True, append_images=[image.rotate(90)])
        return key

    def transparent(self, n: int, originals: object) -> str:
        key, image = self.plain()
        image.putalpha(Image.new("L", image.size, 255))
        image.paste((0, 0, 0, 0), (40, 40, 60, 60 + 10 * n))
        self.save(image, key)
        return key

    def grey(self, n: int, originals: object) -> str:
        key, image = self.plain()
        self.save(image.convert("L"), key)
        return key

    def sixteen_bit(self, n: int, originals: object) -> str:
        key, image = self.plain()
        levels = np.asarray(image.convert("L")).astype(np.uint16) * 257
        self.save(Image.fromarray(levels), key)
        return key


def _rewrite_chunk(path: Path, name: bytes, change: Callable[[bytes], bytes]) -> None:
    """Change the first chunk of this name in a PNG, and its checksum with it."""
    data = path.read_bytes()
    at = data.index(name)
    (length,) = struct.unpack(">I", data[at - 4 : at])
    new = change(data[at + 4 : at + 4 + length])[:length]
    checksum = struct.pack(">I", zlib.crc32(name + new))
    path.write_bytes(data[: at + 4] + new + checksum + data[at + 8 + length :])
