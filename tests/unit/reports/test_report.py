"""The report: all figures, nothing from outside, harmless whatever the captions, always written."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from broken_values import BROKEN, with_one_broken
from made_up_run import HOSTILE, made_up_run, noise, write_json
from page_reader import read
from PIL import Image

from limner.errors import LimnerError
from limner.metrics.interval import wilson
from limner.reports.embedded_images import embed_image
from limner.reports.line_chart import HEIGHT, WIDTH, line_chart, log_ticks, nice_ticks
from limner.reports.run_report import evenly, write_report


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return made_up_run(tmp_path)


def test_every_section_shows_its_figures(run_folder: Path) -> None:
    path = write_report(run_folder)
    assert path == run_folder / "report.html"
    words = read(path).words
    for figure in (
        *("7.6M", "7,612,416", "8m06s", "CPU, 2 cores", "32,000 images in 1,000 steps"),
        *("90%", "54 of 60 (95% CI 80% to 95%); recall@5 95%"),
        *("69%", "25 of 36", "all 306 pictures of hands", "mean squared difference at 32"),
        *("63.1", "38%", "212 GFLOP/s", "0.002"),
        "scheduler type dpmsolver++, num inference steps 16, guidance scale 3.0, shift 2.0, dtype",
        *("thumbs up: dark skin tone", "红苹果", "nearest", "rank 3", "real"),
        *("step 0", "step 1,000", "32,000 images seen"),
        *("held out", "t = 100", "t = 900", "torch.compile is off"),
        *("batch_size", "seed", "2.13.0", "broken.jpg", "truncated file"),
        "limner demo --minutes 10",
    ):
        assert figure in words, figure


def test_pictures_come_before_figures_curves_and_settings(run_folder: Path) -> None:
    def places() -> list[int]:
        words = read(write_report(run_folder)).words
        names = (
            "Samples",
            "recall@1",
            "Recall@k",
            "Previews during",
            "Learning curves",
            "Settings",
        )
        return [words.index(name) for name in names if name in words]

    assert len(places()) == 6
    assert places() == sorted(places())
    (run_folder / "samples.json").unlink()  # it trains still
    words = read(write_report(run_folder)).words
    assert words.index("Previews during") < words.index("recall@1") < words.index("Settings")


def test_what_the_data_are_is_said_once(run_folder: Path) -> None:
    path, about = run_folder / "results.json", "306 pictures. Held out by a hash of the key."
    results = json.loads(path.read_text("utf-8"))
    results |= {"dataset": {"description": about}, "range": f"all 306 images: {about}"}
    write_json(path, results)
    words = read(write_report(run_folder)).words
    assert words.count("Held out by a hash") == 1
    assert "Searched: all 306 images. Distance" in words


def test_pictures_that_a_checker_read_back_show_what_it_found(run_folder: Path) -> None:
    found = {"count": 50, "all_right": 0.92, "by_part": {"colour": 0.98, "place": 0.94}}
    write_json(run_folder / "results.json", {"checker": {"held out": found}})
    sample = {"prompt": "a red square", "file": "samples/000.png", "split": "held out"}
    write_json(run_folder / "samples.json", [sample | {"right": r} for r in (True, False, False)])
    words = read(write_report(run_folder)).words
    for figure in ("92%", "46 of 50 (95% CI 81% to 97%); colour 98%, place 94%"):
        assert figure in words
    assert words.count("✓ correct") == 1
    assert words.count("not fully correct") == 2
    assert "nearest" not in words


def test_it_is_one_file_that_loads_nothing(run_folder: Path) -> None:
    path = write_report(run_folder)
    page = read(path)
    assert len(page.loads) == 3 + 2 + 8 + 1  # drawn, real, previews: the first, the last, 6 between
    assert all(source.startswith("data:image/") for source in page.loads)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|<link|<script|<iframe", text)
    for sign in ('<html lang="en">', '<meta charset="utf-8">', 'name="viewport"', "color-scheme"):
        assert sign in text


def test_hostile_captions_are_text(run_folder: Path) -> None:
    page = read(write_report(run_folder))
    assert page.words.count(HOSTILE) == 2  # the prompt and the event, word for word
    assert "script" not in page.tags
    assert page.handlers == []
    assert "emoji <b>: training run" in page.words


@pytest.mark.parametrize(
    "missing", ["log.jsonl", "config.yaml", "samples.json", "results.json", "refused.jsonl"]
)
def test_a_missing_or_broken_file_leaves_out_its_part_only(run_folder: Path, missing: str) -> None:
    whole = read(write_report(run_folder)).words
    for damage in ("broken", "missing"):
        if damage == "broken" and missing != "config.yaml":
            (run_folder / missing).write_text('{"half', encoding="utf-8")
        else:
            (run_folder / missing).unlink()
        words = read(write_report(run_folder)).words
        assert len(words) < len(whole)
        if missing != "results.json":
            assert "25 of 36" in words
        if missing == "config.yaml":
            break


def test_an_empty_run_folder_has_a_report_and_no_folder_is_an_error(tmp_path: Path) -> None:
    page = read(write_report(tmp_path))
    assert page.loads == []
    assert "h1" in page.tags
    assert "h2" not in page.tags
    with pytest.raises(LimnerError, match="nowhere"):
        write_report(tmp_path / "nowhere")


def test_pictures_that_are_gone_or_no_pictures_are_said_to_be_missing(run_folder: Path) -> None:
    (run_folder / "samples/000.png").unlink()
    (run_folder / "samples/001.png").write_text("not a picture")
    page = read(write_report(run_folder))
    assert page.words.count("missing") == 2
    assert len(page.loads) == 3 + 2 + 8 + 1 - 2


def test_what_an_older_checkpoint_drew_is_said_to_be(run_folder: Path) -> None:
    path = run_folder / "results.json"
    results = json.loads(path.read_text("utf-8"))
    for steps, told in ((1000, False), (900, True)):
        path.write_text(json.dumps(results | {"steps": steps}), "utf-8")
        page = write_report(run_folder).read_text("utf-8")
        assert ("Sampled and measured at step 900 of 1,000" in page) == told


def test_a_resumed_run_is_drawn_once(run_folder: Path) -> None:
    whole = (run_folder / "log.jsonl").read_text(encoding="utf-8")
    before = write_report(run_folder).read_text(encoding="utf-8")
    again = [line for line in whole.splitlines() if '"train"' in line and '"step": 500' in line]
    again += [line for line in whole.splitlines() if '"heldout"' in line]
    log = "\n".join([whole.rsplit("\n", 1)[0], *again])
    (run_folder / "log.jsonl").write_text(log, encoding="utf-8")
    assert write_report(run_folder).read_text(encoding="utf-8") == before


def test_losses_that_are_not_numbers_do_not_stop_the_report(run_folder: Path) -> None:
    with (run_folder / "log.jsonl").open("a", encoding="utf-8") as log:
        for loss in ("NaN", "null", "Infinity"):
            log.write(f'\n{{"kind": "train", "step": 2000, "images": 64000, "loss": {loss}}}')
        log.write('\n{"kind": "heldout", "step": 2000, "images": 64000, "loss": null}')
    text = write_report(run_folder).read_text(encoding="utf-8")
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text)
    assert "0.002" in text


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("samples.json", '[1, null, "x", {}]'),
        ("log.jsonl", '{"kind": "train", "step": 9}\n'),
        ("log.jsonl", '{"kind": "train", "step": 9, "images": null, "loss": "x"}\n'),
        ("log.jsonl", '{"kind": "buckets", "step": 0, "sizes": null}\n'),
        ("log.jsonl", '{"kind": "buckets", "step": 0}\n{"kind": "buckets", "sizes": [1]}\n'),
    ],
)
def test_lines_that_are_not_as_a_run_writes_them_are_left_out(
    run_folder: Path, name: str, lines: str
) -> None:
    path = run_folder / name
    before = path.read_text(encoding="utf-8") if name.endswith("l") else ""
    path.write_text(f"{before}\n{lines}", encoding="utf-8")
    shown = write_report(run_folder).read_text(encoding="utf-8")
    assert "Learning curves" in shown
    assert "Reproduce" in shown


@pytest.mark.parametrize("broken", BROKEN, ids=lambda value: repr(value)[:9])
def test_any_broken_value_of_a_file_does_no_harm(run_folder: Path, broken: Any) -> None:
    for name in ("results.json", "samples.json"):
        whole = json.loads((run_folder / name).read_text("utf-8"))
        for damaged in with_one_broken(whole, [broken]):
            write_json(run_folder / name, damaged)
            assert "Learning curves" in read(write_report(run_folder)).words
        write_json(run_folder / name, whole)
    log = (run_folder / "log.jsonl").read_text("utf-8").splitlines()
    lines = [json.loads(log[k]) for k in (0, 9, 10, 11)]  # an event, steps, and what was held out
    assert {line["kind"] for line in lines} == {"event", "train", "heldout"}
    for damaged in with_one_broken(lines, [broken]):
        text = "\n".join([json.dumps(line) for line in damaged] + log[20:-1])
        (run_folder / "log.jsonl").write_text(text, encoding="utf-8")
        assert "Learning curves" in read(write_report(run_folder)).words


def test_large_pictures_are_shrunk(tmp_path: Path) -> None:
    noise(tmp_path / "large.png", 600)
    shown = embed_image(tmp_path, "large.png", longest_side=100)
    assert shown is not None
    assert (shown.width, shown.height) == (600, 600)
    data = re.fullmatch(r"data:(image/\w+);base64,([^\"]+)", shown.source)
    assert data is not None
    assert data[1] == "image/jpeg"
    with Image.open(io.BytesIO(base64.b64decode(data[2]))) as image:
        assert max(image.size) == 100


def test_evenly_keeps_both_ends() -> None:
    assert evenly(list(range(15)), 8) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert evenly([1, 2], 8) == [1, 2]


def test_wilson_interval_as_published() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, 15 of 148, 0 of 20.
    for hits, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        assert wilson(hits / count, count) == pytest.approx((low, high), abs=1e-4)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


# ---- charts ------------------------------------------------------------------------------------


def lines_in(svg: str) -> list[list[tuple[float, float]]]:
    root = ElementTree.fromstring(svg)  # also: it is well-formed XML
    return [
        [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]  # type: ignore[misc]
        for line in root.iter("{http://www.w3.org/2000/svg}polyline")
    ]


@pytest.mark.parametrize("log_y", [False, True])
def test_larger_values_stand_higher_and_later_ones_further_right(log_y: bool) -> None:
    values = [0.01, 0.5, 3.0, 40.0]
    curve = [(float(10**k), value) for k, value in enumerate(values)]
    (points,) = lines_in(line_chart({"loss": curve}, "t", "x", "y", log_y))
    xs, ys = zip(*points, strict=True)
    assert list(xs) == sorted(set(xs))
    assert list(ys) == sorted(set(ys), reverse=True)
    assert 0 < min(xs) < max(xs) < WIDTH
    assert 0 < min(ys) < max(ys) < HEIGHT
    drops = [(b - a) for a, b in pairwise(ys)]
    ratios = [math.log(b / a) for a, b in pairwise(values)]
    steps = [drop / ratio for drop, ratio in zip(drops, ratios, strict=True)]
    assert (max(steps) - min(steps) < 0.1) == log_y  # equal ratios are equal distances


def test_what_cannot_be_drawn_is_a_gap() -> None:
    curve = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.5), (4, math.inf), (5, 1.0), (6, 0.0)]
    assert [len(run) for run in lines_in(line_chart({"a": curve}, "", "", "", True))] == [2, 1, 1]
    assert [len(run) for run in lines_in(line_chart({"a": curve}, "", "", ""))] == [2, 1, 2]


def test_empty_and_constant_curves() -> None:
    for nothing in ({}, {"a": []}, {"a": [(0.0, math.nan)]}):
        svg = line_chart(nothing, "t", "x", "y")
        assert "no data yet" in svg
        assert lines_in(svg) == []
    for log_y in (False, True):
        (points,) = lines_in(line_chart({"a": [(0, 3.0), (1, 3.0)]}, "t", "x", "y", log_y))
        assert points[0][1] == points[1][1]
    assert len(lines_in(line_chart({"a": [(5, 0.0)]}, "t", "x", "y"))) == 1


@pytest.mark.parametrize("end", [0.5, 1.5])  # all names wanted at the bottom, at the top
def test_a_chart_has_its_names_escaped_apart_and_inside(end: float) -> None:
    curves = {f"<{k}>": [(0, 1.0), (1, end + k / 1000)] for k in range(6)}
    root = ElementTree.fromstring(line_chart(curves, "<title> & more", "x", "y"))
    assert root.findtext("{http://www.w3.org/2000/svg}title") == "<title> & more"
    names = [
        (float(text.attrib["y"]), text.text)
        for group in root.iter("{http://www.w3.org/2000/svg}g")
        for text in group.iter("{http://www.w3.org/2000/svg}text")
    ]
    heights = sorted(y for y, _ in names)
    assert {name for _, name in names} == set(curves)
    assert min(b - a for a, b in pairwise(heights)) >= 15
    assert 0 < heights[0] < heights[-1] < HEIGHT


def test_ticks_are_round_and_inside() -> None:
    assert nice_ticks(0, 22400) == [0, 5000, 10000, 15000, 20000]
    assert nice_ticks(0.31, 0.47) == pytest.approx([0.35, 0.4, 0.45])
    assert log_ticks(0.15, 3.0) == pytest.approx([0.2, 0.5, 1, 2])
    assert log_ticks(0.4, 0.9) == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
