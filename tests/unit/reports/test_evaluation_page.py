"""The page of an evaluation: all figures, nothing from outside, harmless, and always written."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from broken_values import BROKEN, with_one_broken
from made_up_evaluation import BIDI, HOSTILE, LONG, made_up_evaluation
from page_reader import read

from limner.errors import LimnerError
from limner.reports.evaluation_report import write_page
from limner.reports.gauges import DistanceGauge, ShareGauge, figure
from limner.reports.page import templates

KEYS = (
    *("format", "created", "command", "checkpoint", "dataset", "protocol", "versions", "device"),
    *("held_out_loss", "recall", "checker", "metrics", "memorisation", "pictures", "refused"),
    "events",
)


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    return made_up_evaluation(tmp_path)


def rewrite(folder: Path, told: Any) -> str:
    """The words of the page of what is told."""
    (folder / "evaluation.json").write_text(json.dumps(told), encoding="utf-8")
    return read(write_page(folder)).words


def test_every_section_shows_its_figures(tmp_path: Path, told: dict[str, Any]) -> None:
    path = write_page(tmp_path)
    assert path == tmp_path / "evaluation.html"
    words = read(path).words
    for shown in (
        *("emoji: evaluation", "7.6M", "120,000 images", "step 3,750"),
        *("CPU, 2 cores", "2026-11-25", "3,694 training and 259 held-out images"),
        *("78%", "201 of 259; 95% CI 72% to 82%; recall@5 94%", "98%"),
        *(
            "held-out prompts: recall@1",
            "training prompts: recall@5",
            "399 of 400",
            "all 3953 pictures",
        ),
        *("kernel distance (EfficientNet-Lite0)", "0.0213", "0.0182 to 0.0244", "0.0012"),
        *("Fréchet distance", "22.9", "biased at 259 pictures", "higher is better", "24.61"),
        *(
            "Loss by noise level",
            "held out",
            "0: clean, 1000: pure noise",
            "256 images",
            "0.0183",
            "0.0101 to 0.0264",
        ),
        *("thumbs up: dark skin tone", "红苹果", "✓ nearest", "rank 3", "(empty prompt)"),
        *("1.04×", "0.93 to 1.15", "No sign of memorisation", "259 generated images of held"),
        *(
            "0.30×",
            "training image: thumbs up",
            "distance 0.05; held-out median 0.167",
            "over 16 x 16 places",
        ),
        *("guidance_scale", "[0.1, 0.9]", "num_inference_steps", "0 to 258, one for each prompt"),
        *("259 vs 3,694 images", "259 vs 259 images", "0.80×", "bootstrap, seed 0"),
        *("network: sha256", "5ac1e5", "reference: preparation", "weights_sha256", "01234567"),
        *("averaged", "2.13.0", "truncated file", "2 of 259 prompts were cut at 64 tokens."),
        "limner evaluate outputs/emoji --count 259 --reference held-out --seed 0",
    ):
        assert shown in words, shown


def test_what_a_checker_read_back(tmp_path: Path) -> None:
    made_up_evaluation(tmp_path, checker=True)
    words = read(write_page(tmp_path)).words
    for shown in (
        "181 of 200; 95% CI",
        "held-out prompts: place",
        "93%",
        "✓ correct",
    ):
        assert shown in words
    assert "Recall@k" not in words


def test_it_is_one_file_that_loads_nothing(tmp_path: Path, told: dict[str, Any]) -> None:
    path = write_page(tmp_path)
    page = read(path)
    assert len(page.loads) == 13 + 10 + 2 * 4  # drawn, real, pairs
    assert all(source.startswith("data:image/") for source in page.loads)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|<link|<script|<iframe", text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    for sign in ('<html lang="en">', 'name="viewport"', "prefers-color-scheme: dark"):
        assert sign in text


def test_hostile_words_are_text_and_stay_in_their_place(
    tmp_path: Path, told: dict[str, Any]
) -> None:
    def hostile(value: Any) -> Any:
        if isinstance(value, dict):
            return {f"{HOSTILE} {k}" if value is hostile_parts else k: hostile(v)
                    for k, v in value.items()}  # fmt: skip
        if isinstance(value, list):
            return [hostile(v) for v in value]
        is_path = isinstance(value, str) and value.startswith("pictures/")
        return f"{HOSTILE} {value}" if isinstance(value, str) and not is_path else value

    words = read(write_page(tmp_path)).words
    assert words.count(HOSTILE) == 1 + 2 + 1 + 1  # event, prompt twice, caption, refused key
    assert words.count(LONG) == 2
    text = (tmp_path / "evaluation.html").read_text(encoding="utf-8")
    # An override that is left open ends with the element that sets it apart.
    outside = re.sub(r"<bdi>.*?</bdi>|<[^>]*>", "", text)
    assert BIDI in read(tmp_path / "evaluation.html").words
    assert "\u202e" not in outside

    hostile_parts = told["protocol"]
    rewrite(tmp_path, hostile(told))  # every string of it: names, notes, versions, command ...
    page = read(tmp_path / "evaluation.html")
    assert "script" not in page.tags
    assert page.handlers == []
    assert page.words.count(HOSTILE) > 60


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_or_broken_key_leaves_out_its_part_only(
    tmp_path: Path, told: dict[str, Any], key: str
) -> None:
    whole = read(write_page(tmp_path)).words
    for broken in (None, "a string", 7, [], {}, [None, 3, []], {"value": []}, float("nan")):
        words = rewrite(tmp_path, told | {key: broken})
        assert 3000 < len(words) <= len(whole) + 20 or key in ("pictures", "protocol", "metrics")
        assert "emoji" in words or key == "dataset"
        assert not re.search(r"\bnan\b", words)
    rewrite(tmp_path, {k: v for k, v in told.items() if k != key})


@pytest.mark.parametrize("shift", [0, 3])
def test_any_broken_value_at_any_depth_does_no_harm(
    tmp_path: Path, told: dict[str, Any], shift: int
) -> None:
    for key in ("pictures", "metrics"):  # the rest of them is more of the same
        del told[key][1:]
    del told["memorisation"]["worst"][1:]
    for damaged in with_one_broken(told, BROKEN[shift:] + BROKEN[:shift]):
        assert "Limner" in rewrite(tmp_path, damaged)


def test_pictures_that_are_gone_are_said_to_be_missing(
    tmp_path: Path, told: dict[str, Any]
) -> None:
    (tmp_path / "pictures/0000.png").unlink()  # also the first of the pairs
    (tmp_path / "pictures/near-0001.png").write_text("not a picture", encoding="utf-8")
    page = read(write_page(tmp_path))
    assert page.words.count("missing") == 3
    assert len(page.loads) == 31 - 3


def test_pictures_outside_of_the_folder_are_not_shown(tmp_path: Path, told: dict[str, Any]) -> None:
    folder = tmp_path / "inner"
    made_up_evaluation(folder)
    for name in ("../pictures/0001.png", str(tmp_path / "pictures/0001.png")):
        changed = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        changed["pictures"][0]["file"] = name
        rewrite(folder, changed)
        assert len(read(folder / "evaluation.html").loads) == 31 - 1


def test_an_evaluation_of_nothing_has_a_page_and_none_is_an_error(tmp_path: Path) -> None:
    assert "Evaluation" in rewrite(tmp_path, {})
    (tmp_path / "evaluation.json").write_text('{"half', encoding="utf-8")
    with pytest.raises(LimnerError, match=r"evaluation\.json"):
        write_page(tmp_path)
    with pytest.raises(LimnerError, match="limner evaluate"):
        write_page(tmp_path / "nowhere")


# ---- gauges ------------------------------------------------------------------------------------


def drawn(gauge: DistanceGauge | ShareGauge) -> str:
    macros: Any = templates().get_template("gauges.html").module
    is_share = isinstance(gauge, ShareGauge)
    return str(macros.share_gauge(gauge) if is_share else macros.distance_gauge(gauge))


def marks(html: str, kind: str) -> list[float]:
    """Where the lines of a kind stand, in percent of the strip."""
    svg = ElementTree.fromstring(re.findall(r"<svg.*?</svg>", html, re.DOTALL)[0])
    return [
        float(mark.attrib.get("x1") or mark.attrib["x"])
        for mark in svg
        if mark.attrib["class"] == kind
    ]


def test_a_gauge_puts_everything_on_one_scale_from_zero() -> None:
    html = drawn(DistanceGauge("d", 8.0, (6.0, 10.0), 2.0, [1.0, 3.0]))
    scale = 100 / (10 * 1.04)
    assert marks(html, "value") == pytest.approx([8 * scale], abs=0.01)
    assert marks(html, "floor") == pytest.approx([2 * scale], abs=0.01)
    assert marks(html, "floor one") == pytest.approx([scale, 3 * scale], abs=0.01)
    assert marks(html, "interval") == pytest.approx([6 * scale], abs=0.01)


def test_a_gauge_holds_what_lies_below_zero_and_what_is_nothing() -> None:
    """An unbiased distance of equal sets may come out negative."""
    html = drawn(DistanceGauge("d", -0.001, (-0.003, 0.001), 0.0005, [0.0005]))
    places = [marks(html, kind)[0] for kind in ("interval", "value", "floor")]
    assert places == sorted(places)
    assert places[0] == 0
    assert marks(drawn(DistanceGauge("d", 0.0, None, None, [])), "value") == [0]


def test_a_share_is_a_bar_of_its_length() -> None:
    html = drawn(ShareGauge("<b>", 0.25, (0.2, 0.31), "5 of 20"))
    assert "&lt;b&gt;" in html
    svg = ElementTree.fromstring(re.findall(r"<svg.*?</svg>", html, re.DOTALL)[0])
    widths = {m.attrib["class"]: float(m.attrib["width"]) for m in svg}
    assert widths == {"track": 100, "bar": 25, "whisker": pytest.approx(11)}
    assert "5 of 20; 95% CI 20% to 31%" in html


def test_figures_have_four_digits() -> None:
    assert [figure(x) for x in (0.0123456, 61.4321, 12345.6)] == ["0.01235", "61.43", "12,346"]
