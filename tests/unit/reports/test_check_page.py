"""The page of a data check: harmless whatever is in the data, and written whatever is missing."""

import json
from pathlib import Path
from typing import Any

import pytest
from broken_values import BROKEN, with_one_broken
from made_up_run import HOSTILE, noise
from page_reader import Reader, read

from limner.errors import LimnerError
from limner.reports.data_report import write_check_page

TOLD: dict[str, Any] = {
    "created": "2026-11-25T01:00:00Z",
    "dataset": {"name": "photos", "description": "12 pictures with 12 captions."},
    "rows": {"used": 20, "looked_at": 12, "trained": 10, "held_out": 2},
    "settings": {"data.image_size": 64, "data.buckets": None},
    "findings": [
        {
            "severity": "error",
            "kind": "truncated",
            "count": 3,
            "meaning": "the file ends too early",
            "todo": "Copy it again.",
            "first": [{"key": "a.png", "said": "a.png: 30 bytes are missing"}],
        }
    ],
    "alike": [
        {
            "kind": "near-duplicate",
            "files": ["pictures/0.png", "pictures/1.png"],
            "keys": ["a.png", "b.png"],
            "captions": ["a cat", "a dog"],
        }
    ],
    "samples": [
        {"whole": "pictures/0.png", "seen": "gone.png", "captions": ["a cat", "eine Katze"]}
    ],
    "pictures": {
        "mean_share_cut": 0.25,
        "shorter_side": {"edges": [32, 64], "counts": [0, 2, 10]},
        "width_by_height": {"edges": [0.5, 1.25], "counts": [0, 12, 0]},
        "formats": {"PNG": 12},
        "modes": {"RGB": 12},
    },
    "captions": {
        "count": 12,
        "tokens": {"least": 1, "median": 3, "p95": 5, "most": 7},
        "tokens_by": "bytes",
        "scripts": {"Latin": 12},
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("0.png", "1.png"):
        noise(tmp_path / "pictures" / name)
    return tmp_path


def page_of(folder: Path, told: Any) -> Reader:
    (folder / "check.json").write_text(json.dumps(told), encoding="utf-8")
    return read(write_check_page(folder))


def test_every_section_shows_its_figures(folder: Path) -> None:
    page = page_of(folder, TOLD)
    for shown in (
        *("data check · 2026-11-25", "photos: data check"),
        *("3 errors.", "12 pictures with 12 captions.", "of 20", "25%"),
        *("error: truncated, 3", "The file ends too early. Copy it again."),
        *("30 bytes are missing", "and 2 more in problems.jsonl"),
        *("near-duplicate", "b.png: a dog", "eine Katze", "64 × 64 pixels."),
        *("32 to 63 px 17%", "64 px and more 83%", "1:2 to 5:4 100%", "PNG 100%"),
        *("1, 3, 5, 7", "bytes", "Latin 100%", "data.image_size"),
    ):
        assert shown in page.words, shown
    assert "a.png: 30 bytes" not in page.words  # the key is said once
    assert "data.buckets" not in page.words
    assert page.words.count("missing") == 2  # in the words above, and of gone.png
    assert len(page.loads) == 3
    assert all(load.startswith("data:image/") for load in page.loads)


def test_hostile_words_are_text(folder: Path) -> None:
    def hostile(value: Any) -> Any:
        if isinstance(value, dict):
            return {f"{HOSTILE}{k}" if k in ("PNG", "Latin") else k: hostile(v)
                    for k, v in value.items()}  # fmt: skip
        if isinstance(value, list):
            return [hostile(v) for v in value]
        is_path = isinstance(value, str) and value.endswith(("/0.png", "/1.png"))
        return f"{HOSTILE} {value}" if isinstance(value, str) and not is_path else value

    page = page_of(folder, hostile(TOLD))
    assert "script" not in page.tags
    assert page.handlers == []
    assert len(page.loads) == 3
    assert page.words.count(HOSTILE) > 15


@pytest.mark.parametrize("broken", BROKEN, ids=lambda value: repr(value)[:9])
def test_any_broken_value_at_any_depth_does_no_harm(folder: Path, broken: Any) -> None:
    for damaged in with_one_broken(TOLD, [broken]):
        assert "Limner" in page_of(folder, damaged).words


def test_a_check_of_nothing_has_a_page_and_none_is_an_error(folder: Path) -> None:
    page = page_of(folder, {})
    assert "No problems found." in page.words
    assert "h2" not in page.tags
    (folder / "check.json").write_text('{"half', encoding="utf-8")
    with pytest.raises(LimnerError, match="limner check-data"):
        write_check_page(folder)
