"""`limner check-data`: it finds every planted fault by its kind and row, and no others."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import emoji_formats
import numpy as np
import pytest
from dataset_hub import dataset_hub, files_of
from emoji_formats import EXAMPLES, settings
from faulty_set import PLANTED, ROWS, SIDE, TRAIN_SPLIT, faulty_set
from page_reader import read
from PIL import Image

from limner.apps.check_data.captions import faults_of, mojibake, repeated, script_of
from limner.apps.check_data.findings import KINDS, exit_code
from limner.apps.check_data.images import share_cut
from limner.apps.check_data.samples import cut_shown
from limner.apps.check_data.similarity import Compared
from limner.cli import main
from limner.data.builtin.emoji import EmojiImages
from limner.data.convert.convert import prepare
from limner.data.images import fit
from limner.files.fingerprints import digest

SETTINGS = [
    f"data.image_size={SIDE}",
    f"data.train_split={TRAIN_SPLIT}",
    "text_encoder.max_length=32",
]


def found_in(output: Path) -> list[dict[str, Any]]:
    text = (output / "problems.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[tuple[str, str]]]:
    folder = tmp_path_factory.mktemp("faulty") / "data"
    return folder, faulty_set(folder)


@pytest.fixture(scope="module")
def checked(
    faulty: tuple[Path, set[tuple[str, str]]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, bytes], dict[str, bytes]]:
    """(output, the data's files before, and after)."""
    folder, output = faulty[0], tmp_path_factory.mktemp("checked")
    before = everything_in(folder)
    assert main(["check-data", str(folder), *SETTINGS, "--output", str(output)]) == 2
    return output, before, everything_in(folder)


def everything_in(folder: Path) -> dict[str, bytes]:
    return {p.as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_planted_fault_is_found_with_its_kind_and_row_and_no_other(
    faulty: tuple[Path, set[tuple[str, str]]], checked: tuple[Path, Any, Any]
) -> None:
    found = [(line["kind"], line["key"]) for line in found_in(checked[0])]
    assert Counter(found).most_common(1)[0][1] == 1  # each is told once
    assert set(found) - faulty[1] == set()
    assert faulty[1] - set(found) == set()
    assert sum(kind in PLANTED for kind, _ in found) == 100
    assert len(PLANTED) >= 15


def test_a_finding_says_what_where_and_what_to_do(checked: tuple[Path, Any, Any]) -> None:
    for line in found_in(checked[0]):
        assert line["said"]
        assert line["todo"]
        assert line["severity"] == KINDS[line["kind"]].severity
        if line["place"] is not None and line["kind"] != "missing-file":
            assert Path(line["place"]).is_file()
        if "leak" in line["kind"] or "duplicate" in line["kind"]:
            assert line["other"] in line["said"]


def test_the_data_are_as_they_were(checked: tuple[Path, Any, Any]) -> None:
    _, before, after = checked
    assert before == after


def test_the_summary_counts_what_is_there(checked: tuple[Path, Any, Any]) -> None:
    told = json.loads((checked[0] / "check.json").read_text(encoding="utf-8"))
    counts = {finding["kind"]: finding["count"] for finding in told["findings"]}
    assert {kind: counts[kind] for kind in PLANTED} == {k: n for k, (n, _) in PLANTED.items()}
    assert told["findings"][0]["kind"] == "split-leak"  # the worst is said first
    rows, images = told["rows"], told["pictures"]
    of_text = ("empty-caption", "unusable-row", "wrong-encoding", "control-characters")
    refused = sum(PLANTED[k][0] for k in ("missing-file", "path-refused", *of_text))
    bad = ("not-a-picture", "truncated", "unreadable", "too-many-pixels", "unsupported-format")
    undecodable = sum(PLANTED[k][0] for k in bad)
    assert rows["looked_at"] == ROWS - refused - PLANTED["repeated-row"][0]
    assert rows["decoded"] == images["count"] == rows["looked_at"] - undecodable
    assert rows["trained"] + rows["held_out"] == rows["looked_at"]
    assert sum(images["shorter_side"]["counts"]) == images["count"]
    assert sum(images["formats"].values()) == images["count"]
    assert sum(told["captions"]["scripts"].values()) == told["captions"]["count"]
    assert len(told["samples"]) == 12


def test_the_page_shows_it_and_loads_nothing(checked: tuple[Path, Any, Any]) -> None:
    page = read(checked[0] / "check.html")
    assert page.handlers == []
    assert all(load.startswith("data:image/") for load in page.loads)
    assert len(page.loads) == 2 * (12 + 8)
    for kind in PLANTED:
        assert kind in page.words
    assert "What the model will see" in page.words
    for line in found_in(checked[0]):
        if line["kind"] == "split-leak":
            assert line["key"] in page.words


@pytest.mark.parametrize("name", ["emoji", "shapes"])
def test_nothing_false_is_said_of_the_built_in_sets(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"data.dataset_name={name}", "data.num_samples=700", "--output", str(tmp_path)]
    assert main(["check-data", *words]) == 0
    assert capsys.readouterr().out.splitlines()[-2].startswith("0 errors")
    for line in found_in(tmp_path):
        if name == "shapes":  # the same scene drawn again, all but in the same place
            assert line["kind"] == "near-duplicate"
            assert line["key"].rsplit("-", 1)[0] == line["other"].rsplit("-", 1)[0]
        elif line["kind"] in ("conflicting-captions", "duplicate"):
            emoji = EmojiImages()
            rows = {row.key: row for row in emoji.rows}
            pair = [emoji.load(rows[line[key]], 128) for key in ("key", "other")]
            assert np.array_equal(*pair)  # Twemoji draws these alike
        else:
            assert line["severity"] == "note"


def test_a_clean_folder_exits_with_0_and_warnings_count_where_asked(tmp_path: Path) -> None:
    data, output = tmp_path / "data", str(tmp_path / "out")
    write_pairs(data, 12)
    assert main(["check-data", str(data), "--output", output]) == 0
    assert found_in(Path(output)) == []
    assert main(["check-data", str(data), "--output", output, "--strict"]) == 0
    warned = ["check-data", str(data), "data.image_size=96", "--output", output]
    assert main(warned) == 0
    assert main([*warned, "--strict"]) == 1
    assert {line["kind"] for line in found_in(Path(output))} == {"small-picture"}
    (data / "3.txt").unlink()
    assert main(["check-data", str(data), "--output", output]) == 2
    assert {line["kind"] for line in found_in(Path(output))} == {"no-caption"}


def write_pairs(folder: Path, count: int, side: int = 64) -> None:
    folder.mkdir()
    emoji = EmojiImages("demo", ["en"])
    for number, row in enumerate(emoji.rows[:: len(emoji.rows) // count][:count]):
        Image.fromarray(emoji.load(row, side)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(row.captions[0], encoding="utf-8")


def test_a_configuration_and_a_sample_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, config = tmp_path / "data", tmp_path / "my.yaml"
    write_pairs(data, 12)
    run = {"dataset_path": data.as_posix()}
    config.write_text(
        f"data: {json.dumps(run)}\ntraining: {{output_dir: {(tmp_path / 'run').as_posix()}}}\n",
        encoding="utf-8",
    )
    assert main(["check-data", str(config), "--sample", "5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"]["looked_at"] == 5
    assert told["rows"]["used"] == 12
    assert told == json.loads((tmp_path / "run" / "check" / "check.json").read_text("utf-8"))
    assert main(["check-data", "--config", str(config), "--sample", "5", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["samples"] == told["samples"]


def test_what_cannot_be_done_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    write_pairs(data, 12)
    assert main(["check-data", str(data), "--output", str(data / "check")]) == 2
    assert "is inside the data folder (" in capsys.readouterr().err
    assert not (data / "check").exists()
    assert main(["check-data", str(tmp_path / "nowhere")]) == 2
    assert "folder not found: " in capsys.readouterr().err
    assert main(["check-data", str(data), "--sample", "0"]) == 2
    assert "--sample 0" in capsys.readouterr().err


def test_one_caption_for_many_pictures(tmp_path: Path) -> None:
    data, output = tmp_path / "data", tmp_path / "out"
    write_pairs(data, 20)
    for number in range(7):
        (data / f"{number}.txt").write_text("a drawing", encoding="utf-8")
    assert main(["check-data", str(data), "--output", str(output)]) == 0
    (line,) = found_in(output)
    assert (line["kind"], line["key"]) == ("caption-shared", "0.png")
    assert "7 of 20" in line["said"]


@pytest.mark.parametrize("above", ["Dropbox (Personal)", "Smith, John", "John's MacBook"])
@pytest.mark.parametrize("table", [False, True])
def test_the_page_names_no_folder_whatever_it_is_called(
    above: str, table: bool, tmp_path: Path
) -> None:
    data = tmp_path / above / "Northwind" / "photos"
    data.mkdir(parents=True)
    rows = [{"file_name": "../private.png", "text": "outside"}]
    for number in range(12):
        Image.new("RGB", (SIDE, SIDE), (9 * number, 0, 9)).save(data / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": f"colour {number}"})
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    named, output = data / "metadata.jsonl" if table else data, tmp_path / "check"
    words = [str(named), f"data.image_size={SIDE}", "--output", str(output)]
    assert main(["check-data", *words]) == 2
    page = (output / "check.html").read_text(encoding="utf-8")
    assert "leads out of the folder photos" in page
    assert "Northwind" not in page
    assert "Northwind" in (output / "problems.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("guide", ["checking.md", "checking.zh-CN.md"])
def test_the_guide_names_every_kind_in_its_order(guide: str) -> None:
    text = (Path(__file__).parents[3] / "docs" / guide).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| (error|warning|note) \|", text, re.MULTILINE)
    assert rows == [(kind, about.severity) for kind, about in KINDS.items()]


def test_the_exit_code() -> None:
    assert exit_code([], strict=True) == 0
    assert exit_code([{"severity": "note"}], strict=True) == 0
    assert exit_code([{"severity": "warning"}], strict=False) == 0
    assert exit_code([{"severity": "warning"}], strict=True) == 1
    assert exit_code([{"severity": "warning"}, {"severity": "error"}], strict=False) == 2


@pytest.mark.parametrize(("width", "height"), [(100, 100), (300, 100), (90, 240), (1000, 3)])
def test_what_is_cut_is_what_the_crop_cuts(width: int, height: int) -> None:
    """A white picture with its cut part in red: nothing red is left after the crop."""
    cut = share_cut(width, height, 16, 16)
    assert cut == pytest.approx(1 - min(width, height) / max(width, height))
    edge = (max(width, height) - min(width, height)) // 2
    image = Image.new("RGB", (width, height), "white")
    if edge:
        end = (edge, height) if width > height else (width, edge)
        for corner in ((0, 0), (width - end[0], height - end[1])):
            image.paste("red", (*corner, corner[0] + end[0], corner[1] + end[1]))
    kept = np.asarray(fit(image, 16, 16))
    assert (kept[3:-3, 3:-3] > 240).all()
    shown = np.asarray(cut_shown(image, 16, 16)).reshape(-1, 3)
    grey = (np.abs(shown.astype(int) - 128).max(1) < 70).mean()
    assert grey == pytest.approx(cut, abs=0.12) or min(width, height) < 10


# ---- alike


def test_nearly_the_same_are_found_as_by_looking_at_all_pairs() -> None:
    """500 pictures of soft noise, some again with little added: the windows lose no pair."""
    rng = np.random.default_rng(0)
    base = rng.integers(60, 190, (500, 1, 1, 3)) + rng.integers(-50, 50, (500, 8, 8, 3))
    small = base.repeat(4, 1).repeat(4, 2)
    for i in range(100):  # of pictures apart by 0 to 8 levels in a cell
        small[400 + i] = small[i] + rng.integers(-1, 2, small[i].shape)
        small[400 + i, :4, :4] += i % 9
    small = small.clip(0, 255).astype(np.uint8)
    with Compared(500) as compared:
        for i in rng.permutation(500):
            compared.put(int(i), digest(str(i)), small[i])
        found = set(compared.nearly(np.arange(500)))
    wide = small.astype(np.float32)
    expected = set()
    for i in range(500):
        apart = wide[i + 1 :] - wide[i]
        cells = np.abs(apart.reshape(-1, 8, 4, 8, 4, 3).mean((2, 4))).max((1, 2, 3))
        rms = np.sqrt(np.square(apart).mean((1, 2, 3)))
        expected |= {(i, i + 1 + int(k)) for k in np.flatnonzero((cells <= 4.4) & (rms <= 4))}
    assert 40 <= len(expected) < 100
    assert found == expected


def test_the_same_are_found_as_by_a_dictionary() -> None:
    rng = np.random.default_rng(1)
    hashes = [digest(str(k)) for k in rng.integers(0, 60, 100)]
    small = np.zeros((32, 32, 3), dtype=np.uint8)
    with Compared(120) as compared:
        for i, pixels in enumerate(hashes):
            compared.put(i, pixels, small)  # rows 100 to 119 cannot be decoded
        groups = [group.tolist() for group in compared.same()]
    expected: dict[bytes, list[int]] = {}
    for i, pixels in enumerate(hashes):
        expected.setdefault(pixels, []).append(i)
    assert groups == [group for group in expected.values() if len(group) > 1]


# ---- captions

GOOD_CAPTIONS = [
    "a cat on a chair",
    "thumbs up, dark skin tone",
    "红苹果",
    "りんごとオレンジ",
    "한국의 산",
    "Красный дом",
    "تفاحة حمراء",
    "Ein grüner Fluß, naïve façade, ÅÄÖ, Năm mới, São João é cão",
    "7",
    "3 < 5 and 7 > 2, rock & roll",
    "New York, New York at night",
    "a picture of an untitled painting",
    "the number 2024 on a wall, 1 1 1 1 on a clock",
    "an image processing pipeline, no one in it",
    "“quoted” — with dashes… and 90° of ½",
    "version 2.0 of a photo 5",
]


@pytest.mark.parametrize("caption", GOOD_CAPTIONS)
def test_nothing_is_said_of_a_good_caption(caption: str) -> None:
    assert list(faults_of(caption)) == []


@pytest.mark.parametrize(
    ("caption", "script"),
    [
        *zip(GOOD_CAPTIONS[:2], ["Latin"] * 2, strict=True),
        ("红苹果 with a cat", "Latin"),
        ("红苹果", "Chinese characters"),
        ("日本の山", "Japanese (kana)"),
        ("한국의 산", "Korean (Hangul)"),
        ("Красный дом", "Cyrillic"),
        ("تفاحة حمراء", "Arabic"),
        ("42 !", "no letters"),
    ],
)
def test_the_script_is_that_of_most_letters(caption: str, script: str) -> None:
    assert script_of(caption) == script


def test_mojibake_is_undone() -> None:
    for text in ("café", "naïve “quote” – dash", "Fluß", "红苹果", "日本の山", "дом", "🍎 apple"):
        for encoding in ("cp1252", "latin-1"):
            try:
                broken = text.encode("utf-8").decode(encoding)
            except UnicodeDecodeError:
                continue
            assert mojibake(broken) == text
        assert mojibake(text) is None
    assert mojibake("a caf\ufffd") == "a caf?"


def test_loops_are_found_and_counting_is_none() -> None:
    assert repeated("a dog and a dog and a dog and") == "a dog and"
    assert repeated("very very very big") == "very"
    assert repeated("very very big, very very small") is None
    assert repeated("0 0 0 0") is None
    assert repeated("x " * 5000) == "x"


# ---- formats

FORMATS = [*EXAMPLES]
LISTED = (
    "metadata.json",
    "metadata.jsonl",
    "metadata.csv",
    "csv",
    "parquet of paths",
    "coco",
    "cub",
)
"""Those in which a file may lie that nothing names."""


def check_format(name: str, folder: Path, *words: str) -> tuple[int, list[dict[str, Any]]]:
    """(exit code, findings worse than notes)."""
    ours = [*settings(name, folder / "data"), "data.image_size=16", *words]
    code = main(["check-data", *ours, "--output", str(folder / "out")])
    return code, [line for line in found_in(folder / "out") if line["severity"] != "note"]


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_false_is_said_of_any_format(name: str, tmp_path: Path) -> None:
    assert check_format(name, tmp_path) == (0, [])
    told = json.loads((tmp_path / "out" / "check.json").read_text("utf-8"))
    held_out = EXAMPLES[name].held_out
    assert told["rows"]["looked_at"] == told["rows"]["decoded"] == len(emoji_formats.emoji())
    assert held_out is None or told["rows"]["held_out"] == len(held_out)
    assert told["captions"]["scripts"].keys() == {"Latin", "Chinese characters"}
    assert len(told["samples"]) == 12


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_planted_in_any_format_is_found_by_its_row(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that breaks off, one that is no picture, one that is an earlier one's again (both
    trained), and a caption that stands for one."""
    good = list(emoji_formats.emoji())
    same = 5, 9
    good[1] = replace(good[1], data=good[1].data[: len(good[1].data) * 2 // 3])
    good[2] = replace(good[2], data=b"<html>404 Not Found</html>")
    good[same[1]] = replace(good[same[1]], data=good[same[0]].data)
    good[14] = replace(good[14], captions=("untitled", good[14].captions[1]))
    monkeypatch.setattr(emoji_formats, "emoji", lambda: tuple(good))
    code, found = check_format(name, tmp_path, "data.train_split=1")
    assert code == 2
    expected = {
        ("truncated", 1),
        ("not-a-picture", 2),
        ("conflicting-captions", same[1]),
        ("caption-placeholder", 14),
    }
    key = EXAMPLES[name].key
    assert Counter(line["kind"] for line in found) == Counter(kind for kind, _ in expected)
    for kind, place in expected:
        (line,) = (line for line in found if line["kind"] == kind)
        assert line["key"].rpartition("/")[2].endswith(key(place))


@pytest.mark.parametrize("name", LISTED)
def test_a_file_that_nothing_names_is_told_where_rows_lie(name: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    ours = [*settings(name, data), "data.image_size=16"]
    first = next(data.rglob(emoji_formats.emoji()[0].name))
    for place in (first.parent / "stray.png", data / "another-use" / "apart.png"):
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16)).save(place)
    words = ["check-data", *ours, "--output", str(tmp_path / "out")]
    assert main(words) == 0
    found = [line for line in found_in(tmp_path / "out") if line["severity"] != "note"]
    if name == "csv":  # the path is that of the list itself, and there may be other lists
        assert found == []
        return
    (line,) = found
    assert (line["kind"], line["place"]) == ("unreferenced-file", str(first.parent / "stray.png"))


@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_a_set_that_is_streamed_is_checked_where_it_is(layout: str, tmp_path: Path) -> None:
    emoji_formats.metadata_jsonl(tmp_path / "source")
    prepare(
        "auto", tmp_path / "source", tmp_path / "set", to=layout, shard_size="10",
        overrides=["data.caption_column=[english, chinese]"],
    )  # fmt: skip
    words = ["data.dataset_name=someone/emoji", "data.streaming=true", "data.image_size=16"]
    words += [f"cache.folder={(tmp_path / 'cache').as_posix()}", "--output", str(tmp_path / "out")]
    with dataset_hub("someone/emoji", files_of(tmp_path / "set"), []) as address:
        there = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            [sys.executable, "-m", "limner", "check-data", *words],
            env=there, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert found_in(tmp_path / "out") == []
        told = json.loads((tmp_path / "out" / "check.json").read_text("utf-8"))
        assert told["rows"]["decoded"] == len(emoji_formats.emoji())
        # Shapes of what is far away are not known beforehand: training says so, too.
        done = subprocess.run(
            [sys.executable, "-m", "limner", "check-data", *words, "data.buckets=auto"],
            env=there, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 2
        assert "data.buckets: not supported with streaming" in done.stderr


def test_folders_as_captions(tmp_path: Path) -> None:
    """One caption for all pictures of a folder is meant, and said to be so only where it is
    a large share."""
    data, output = tmp_path / "data", tmp_path / "out"
    for number, one in enumerate(emoji_formats.emoji()):
        place = data / f"{'abcdefghijkl'[number % 12]}_cat" / one.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(one.data)
    words = ["check-data", str(data), "data.image_size=16", "--output", str(output)]
    assert main(words) == 0
    assert [line for line in found_in(output) if line["severity"] != "note"] == []


def test_with_buckets_the_cut_is_that_of_the_bucket(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    emoji = EmojiImages("demo", ["en"])
    for number, row in enumerate(emoji.rows[:48]):
        square = Image.fromarray(emoji.load(row, 64))
        sides = ((64, 64), (128, 64), (64, 192))[number % 3]
        square.resize(sides).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text(row.captions[0], encoding="utf-8")
    settings = ["data.image_size=64", "model.patch_size=4"]
    words = ["check-data", str(data), *settings, "--output", str(output)]
    assert main(words) == 0
    assert Counter(line["kind"] for line in found_in(output)) == {"extreme-ratio": 16}
    told = json.loads((output / "check.json").read_text("utf-8"))
    assert told["pictures"]["mean_share_cut"] == pytest.approx((0 + 1 / 2 + 2 / 3) / 3)
    capsys.readouterr()
    assert main([*words, "data.buckets=[[64, 64], [32, 64], [96, 32]]"]) == 0
    assert found_in(output) == []
    told = json.loads((output / "check.json").read_text("utf-8"))
    assert told["pictures"]["mean_share_cut"] == 0
    assert "the nearest size of data.buckets, 0% of a picture" in capsys.readouterr().out
    assert "for the nearest of data.buckets" in read(output / "check.html").words
    seen = {Image.open(path).size for path in (output / "pictures").glob("*-seen.png")}
    assert seen <= {(64, 64), (64, 32), (32, 96)}
    assert len(seen) > 1
    assert main([*words, "data.buckets=auto"]) == 0
    told = json.loads((output / "check.json").read_text("utf-8"))
    # 3:1 is longer than data.max_aspect_ratio, 2:1, and is cut to that.
    assert told["pictures"]["mean_share_cut"] == pytest.approx((0 + 0 + 1 / 3) / 3, abs=0.01)
