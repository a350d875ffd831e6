"""The contact sheet: pictures where they should be, words that can be read or an honest number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from limner.errors import LimnerError
from limner.inference import contact_sheet as module
from limner.inference import fonts
from limner.inference.contact_sheet import (
    GAP,
    MARGIN,
    TEXT_GAP,
    contact_sheet,
    in_fewer_columns,
    label_text,
    save_contact_sheet,
    wrap,
)
from limner.inference.fonts import SYSTEM_FONTS, font_for

RED, GREEN, BLUE = (255, 0, 0), (0, 160, 0), (0, 0, 255)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, colour)


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch):
    """A machine without any system font, as a slim container is."""
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ())
    monkeypatch.setattr(fonts, "_said", set())
    font_for.cache_clear()
    yield
    font_for.cache_clear()


def test_pictures_stand_in_rows_in_the_order_given() -> None:
    sheet = contact_sheet([plain(RED), plain(GREEN), plain(BLUE)], ["a", "b", "c"], columns=2)
    assert sheet.width == 2 * MARGIN + 2 * 96 + GAP
    middle, next_column = MARGIN + 48, MARGIN + 96 + GAP + 48
    assert sheet.getpixel((middle, MARGIN + 48)) == RED
    assert sheet.getpixel((next_column, MARGIN + 48)) == GREEN
    line = module.line_height(font_for("a", module.LABEL_SIZE))
    second_row = MARGIN + 96 + TEXT_GAP + line + GAP
    assert sheet.getpixel((middle, second_row + 48)) == BLUE
    assert sheet.height == second_row + 96 + TEXT_GAP + line + MARGIN
    # The whole square is the picture's, to its last pixel, and what lies around it is not.
    for corner in ((0, 0), (95, 95)):
        assert sheet.getpixel((MARGIN + corner[0], MARGIN + corner[1])) == RED
    assert sheet.getpixel((MARGIN - 2, MARGIN)) == (255, 255, 255)


def test_the_real_picture_stands_beside_the_drawn_one() -> None:
    sheet = contact_sheet([plain(RED)] * 2, ["a", "b"], columns=2, truths=[plain(BLUE), None])
    assert sheet.width == 2 * MARGIN + 2 * (96 + TEXT_GAP + 48) + GAP
    beside = MARGIN + 96 + TEXT_GAP + 24
    assert sheet.getpixel((beside, MARGIN + 24)) == BLUE
    assert sheet.getpixel((beside + 96 + TEXT_GAP + 48 + GAP, MARGIN + 24)) == (255, 255, 255)


def test_each_group_starts_a_new_row_under_its_heading() -> None:
    images, labels = [plain(RED), plain(BLUE)], ["a", "b"]
    together = contact_sheet(images, labels, columns=2)
    apart = contact_sheet(images, labels, columns=2, groups=["trained", "held out"])
    red, blue = extent(apart, RED), extent(apart, BLUE)
    assert red[0] == blue[0] == MARGIN
    assert red[3] < blue[1]
    assert apart.height > 2 * together.height - 2 * MARGIN


def extent(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the pixels of exactly this colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(axis=-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_pictures_keep_their_proportions_and_transparency_lies_on_white() -> None:
    wide = contact_sheet([plain(RED, (64, 32))], [""], columns=1)
    left, top, right, bottom = extent(wide, RED)
    assert (right - left, bottom - top) == (96, 48)
    clear = contact_sheet([Image.new("RGBA", (32, 32), (255, 0, 0, 0))], [""], columns=1)
    assert clear.getpixel((MARGIN + 48, MARGIN + 48)) == (255, 255, 255)


def test_the_saved_file_carries_its_prompts_in_any_script(tmp_path: Path) -> None:
    labels = ["a red apple", "红苹果", "تفاحة حمراء"]
    sheet = contact_sheet([plain(RED)] * 3, labels)
    save_contact_sheet(sheet, tmp_path / "new" / "samples.png", labels)
    with Image.open(tmp_path / "new" / "samples.png") as saved:
        saved.load()
        assert json.loads(saved.text["prompts"]) == labels  # type: ignore[attr-defined]
        assert saved.tobytes() == sheet.tobytes()


def test_a_sheet_in_fewer_columns_has_the_same_pictures_in_order() -> None:
    colours = [(10 * i, 200, 255 - 10 * i) for i in range(8)]
    sheet = contact_sheet([plain(colour) for colour in colours], [str(i) for i in range(8)])
    narrow = in_fewer_columns(sheet, 3)
    assert narrow is not None
    assert narrow.width == 2 * MARGIN + 3 * 96 + 2 * GAP
    places = [extent(narrow, colour) for colour in colours]
    assert [(right - left, bottom - top) for left, top, right, bottom in places] == [(96, 96)] * 8
    assert [left for left, *_ in places] == [MARGIN + (i % 3) * (96 + GAP) for i in range(8)]
    assert places == sorted(places, key=lambda place: (place[1], place[0]))
    assert len({top for _, top, *_ in places}) == 3
    frame = narrow.getpixel((places[2][2], places[2][1]))
    assert frame == module.FRAME, "the frame of the last in a row is whole"
    beside = narrow.crop((MARGIN + 2 * (96 + GAP), places[6][1], narrow.width, places[6][3]))
    assert beside.getextrema() == ((255, 255),) * 3, "nothing stands where a row is not full"


def test_what_is_narrow_already_or_no_sheet_stays() -> None:
    sheet = contact_sheet([plain(RED)] * 3, ["a", "b", "c"])
    assert in_fewer_columns(sheet, 3) is None
    assert in_fewer_columns(Image.new("RGB", (500, 100)), 3) is None
    assert in_fewer_columns(Image.new("RGB", (8, 8)), 3) is None


def test_labels_wrap_within_their_cell() -> None:
    font = ImageFont.load_default(12)
    assert isinstance(font, ImageFont.FreeTypeFont)
    text = "woman in a motorized wheelchair, medium-dark skin tone"
    lines = wrap(text, font, 96)
    assert " ".join(lines) == text
    assert all(font.getlength(line) <= 96 for line in lines)
    assert "".join(wrap("x" * 40, font, 96)) == "x" * 40
    long = wrap("one two three " * 40, font, 96)
    assert len(long) == module.MAX_LABEL_LINES
    assert long[-1].endswith("...")
    assert font.getlength(long[-1]) <= 96


@pytest.mark.usefixtures("bare_machine")
def test_without_a_font_that_has_the_letters_a_label_is_its_number() -> None:
    for prompt in ("红苹果", "تفاحة حمراء", "красное яблоко", "👍🏿"):
        assert label_text(prompt, 7, 12, 96)[0] == ["#7"]
    assert label_text("piñata – woman’s hat", 7, 12, 300)[0] == ["pinata - woman's hat"]
    assert label_text("", 7, 12, 96)[0] == ["(empty prompt)"]


@pytest.mark.usefixtures("bare_machine")
@pytest.mark.parametrize(
    ("system", "install"),
    [
        ("Linux", "install fonts-noto-cjk (Debian, Ubuntu)"),
        ("Darwin", "brew install --cask font-noto-sans-cjk"),
        ("Windows", "supplemental fonts of the language in Settings"),
    ],
)
def test_what_to_install_for_labels_that_are_numbers_is_said_once(
    system: str,
    install: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    for _ in range(2):
        contact_sheet([plain(RED)] * 4, ["a cat", "红苹果", "piñata", "빨간 사과"])
    (said,) = caplog.messages
    assert "2 captions of a contact sheet are shown as #1, #3," in said
    assert install in said
    contact_sheet([plain(RED)], ["красное яблоко"])
    (_, other) = caplog.messages
    assert "1 caption of a contact sheet is shown as #0" in other
    assert "install a font with its letters" in other


def test_where_all_labels_are_letters_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    contact_sheet([plain(RED)] * 3, ["a cat", "", "piñata – woman’s hat"])
    assert caplog.messages == []


def test_each_system_has_fonts_of_chinese_japanese_and_korean_in_the_list() -> None:
    for usual in (
        *("NotoSansCJK-Regular.ttc", "NotoSansCJK-VF.ttc"),  # Debian, Fedora
        *("Hiragino Sans GB.ttc", "ヒラギノ角ゴシック W3.ttc", "AppleSDGothicNeo.ttc"),
        *("msyh.ttc", "msjh.ttc", "YuGothM.ttc", "malgun.ttf"),
    ):
        assert usual in SYSTEM_FONTS
    assert len(set(SYSTEM_FONTS)) == len(SYSTEM_FONTS)


def test_no_label_is_ever_drawn_with_the_box_for_a_missing_letter() -> None:
    for prompt in ("red apple", "красное яблоко", "红苹果", "\U0001f44d", "तो", "قلم"):
        lines, font = label_text(prompt, 3, 12, 300)
        box = bytes(font.getmask("\uffff"))
        assert all(bytes(font.getmask(c)) != box for c in "".join(lines) if c != " ")


def test_lengths_that_differ_are_an_error_that_says_which() -> None:
    with pytest.raises(LimnerError, match="2 pictures but 1 labels"):
        contact_sheet([plain(RED)] * 2, ["a"])
    with pytest.raises(LimnerError, match="1 pictures but 2 groups"):
        contact_sheet([plain(RED)], ["a"], groups=["x", "y"])
