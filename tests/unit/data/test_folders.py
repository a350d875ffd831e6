"""The three layouts of a folder, what is refused and why, and a split that new rows do not move."""

import json
import os
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner.data.dataset import ImageError, Row
from limner.data.formats.folders import FolderImages
from limner.data.split import is_held_out, sampling_rank, split_rows
from limner.errors import LimnerError


def write_image(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (level, level, level)).save(path)


def metadata(folder: Path, rows: object) -> None:
    text = rows if isinstance(rows, str) else json.dumps(rows, ensure_ascii=False)
    (folder / "metadata.json").write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """images/a.png, b.png, c.png with grey levels 10, 20, 30."""
    for level, name in enumerate("abc", start=1):
        write_image(tmp_path / "images" / f"{name}.png", 10 * level)
    return tmp_path


def pairs(images: FolderImages) -> dict[str, tuple[str, ...]]:
    return {row.key: row.captions for row in images.rows}


WANTED = {"images/a.png": ("a red apple",), "images/b.png": ("红苹果", "苹果, 红")}


def write_json(folder: Path) -> None:
    rows = [{"image": key, "text": list(texts)} for key, texts in WANTED.items()]
    rows[0]["text"] = " a red apple\n"
    metadata(folder, rows)


def write_jsonl(folder: Path) -> None:
    rows = [{"file_name": key, "text": text} for key, texts in WANTED.items() for text in texts]
    lines = "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())  # as Notepad saves


def write_csv(folder: Path) -> None:
    lines = [f'{key},"{text}"' for key, texts in WANTED.items() for text in texts]
    text = "\n".join(["file_name,text", *lines])
    (folder / "metadata.csv").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("write", [write_json, write_jsonl, write_csv])
def test_each_metadata_file_is_found_by_looking(folder: Path, write):
    write(folder)
    images = FolderImages(folder)
    assert pairs(images) == WANTED
    assert images.refused == []
    levels = [images.load(row, 8)[0, 0, 0] for row in images.rows]
    assert levels == [10, 20]
    assert "2 pictures with 3 captions" in images.description


@pytest.mark.parametrize("other", ["words of a web page", {"en": "x"}, 7, None])
def test_what_other_programs_keep_under_captions_is_let_be(tmp_path: Path, other: object):
    write_image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("my own words", encoding="utf-8")
    beside = {"captions": other, "held_out": True}
    (tmp_path / "a.json").write_text(json.dumps(beside), encoding="utf-8")
    images = FolderImages(tmp_path)
    assert pairs(images) == {"a.png": ("my own words",)}
    assert images.rows[0].held_out is True
    assert images.refused == []


def test_of_two_captions_of_one_name_the_other_is_refused(tmp_path: Path):
    write_image(tmp_path / "cat.png")
    (tmp_path / "cat.TXT").write_text("in capitals", encoding="utf-8")
    (tmp_path / "cat.txt").write_text("in small letters", encoding="utf-8")
    if len(list(tmp_path.glob("cat.[tT]*"))) < 2:
        pytest.skip("this file system does not tell capitals apart")
    images = FolderImages(tmp_path)
    assert pairs(images) == {"cat.png": ("in small letters",)}
    assert [(row.key, row.reason) for row in images.refused] == [
        ("cat.TXT", "cat.txt next to it has the same name and is read instead")
    ]


def test_a_caption_file_of_kohyas_scripts_is_read_where_there_is_no_txt(tmp_path: Path):
    for name in ("a.png", "deep/b.png"):
        write_image(tmp_path / name)
    (tmp_path / "a.txt").write_text("words", encoding="utf-8")
    (tmp_path / "a.caption").write_text("other words", encoding="utf-8")
    (tmp_path / "deep/b.Caption").write_text("zwei Äpfel", encoding="utf-8")
    (tmp_path / "alone.caption").write_text("no picture", encoding="utf-8")
    images = FolderImages(tmp_path)
    assert pairs(images) == {"a.png": ("words",), "deep/b.png": ("zwei Äpfel",)}
    assert [row.key for row in images.refused] == ["alone.caption"]
    assert "Not read: 1 .caption file, as a .txt of the same name is there." in images.notes


def test_captions_beside_pictures_in_any_subfolder(tmp_path: Path):
    for name in ("one.jpg", "deep/er/two.PNG", "bare.png", "._one.jpg", ".git/x.png"):
        write_image(tmp_path / name)
    (tmp_path / "one.txt").write_text("  a line\nand another \n", encoding="utf-8")
    (tmp_path / "._one.txt").write_text("of the system", encoding="utf-8")
    (tmp_path / "deep/er/two.TXT").write_text("zwei Äpfel", encoding="utf-8-sig")
    (tmp_path / "alone.txt").write_text("no picture", encoding="utf-8")
    images = FolderImages(tmp_path)
    assert pairs(images) == {
        "one.jpg": ("a line\nand another",),
        "deep/er/two.PNG": ("zwei Äpfel",),
    }
    assert {row.key: row.reason for row in images.refused} == {
        "bare.png": "there is no .txt of the same name next to it",
        "alone.txt": "there is no picture of the same name and a known extension next to it",
    }


def test_a_caption_file_of_another_encoding_is_refused_with_its_line(tmp_path: Path):
    write_image(tmp_path / "good.png")
    write_image(tmp_path / "bad.png")
    (tmp_path / "good.txt").write_text("good", encoding="utf-8")
    (tmp_path / "bad.txt").write_bytes(b"first\n\xe4pfel")
    [refused] = FolderImages(tmp_path).refused
    assert refused.key == "bad.png"
    assert re.search(
        r"bad\.txt: line 2 of the caption: byte 0xe4 is not valid UTF-8\. Save", refused.reason
    )


def test_rows_of_one_picture_are_merged_in_order(folder: Path):
    rows = [
        ("images/a.png", "one"),
        ("images/b.png", "b"),
        ("images/../images/a.png", ["two", "3"]),
    ]
    metadata(folder, [{"image": image, "text": text} for image, text in rows])
    assert pairs(FolderImages(folder)) == {
        "images/a.png": ("one", "two", "3"),
        "images/b.png": ("b",),
    }


@pytest.mark.parametrize(
    ("image", "text", "reason"),
    [
        ("images/gone.png", "x", "the picture file is not there"),
        ("images/A.png", "x", "not there (names are case-sensitive)"),
        ("pics/a.png", "x", "the folder 'pics' is not there"),
        ("images/b.png", "  \n", "the caption is empty"),
        ("images/b.png", [], "the list of captions is empty"),
        ("images/b.png", None, "the caption is None, not text"),
        ("images/b.png", 7, "the caption is 7, not text"),
        ("images/b.png", "\ud800", "the caption is not valid Unicode"),
        ("images/\udce4.png", "x", "the path is not valid Unicode"),
        ("images/a.png", "good ", "same picture and text stand in an earlier row"),
        ("images/b.pdf", "x", "not a picture extension"),
        ("https://example.org/b.png", "x", "this is a URL"),
        ("", "x", "not the name of a picture file"),
        (None, "x", "not the name of a picture file"),
        ("/etc/secret.png", "x", "leads out of the folder"),
        ("../outside.png", "x", "leads out of the folder"),
        ("images/../../outside.png", "x", "leads out of the folder"),
        ("images\\..\\..\\outside.png", "x", "leads out of the folder"),
        ("\\\\server\\share\\b.png", "x", "leads out of the folder"),
        ("C:\\b.png", "x", "leads out of the folder"),
        ("C:b.png", "x", "leads out of the folder"),
        ("images/b.png\0.png", "x", "contains a NUL character"),
    ],
)
def test_a_bad_row_is_refused_with_its_place_and_reason(folder: Path, image, text, reason):
    write_image(folder.parent / "outside.png")
    rows = [{"image": "images/a.png", "text": "good"}, {"image": image, "text": text}]
    metadata(folder, json.dumps(rows))  # with \u escapes, as they stand in files
    images = FolderImages(folder)
    assert pairs(images) == {"images/a.png": ("good",)}
    [refused] = images.refused
    assert refused.reason.startswith("metadata.json, row 2: ")
    assert reason in refused.reason
    refused.key.encode("utf-8")  # may be printed and saved


def test_a_bad_caption_of_a_list_leaves_the_good_ones(folder: Path):
    metadata(folder, [{"image": "images/a.png", "text": ["one", "", "two", "one"]}])
    images = FolderImages(folder)
    assert pairs(images) == {"images/a.png": ("one", "two")}
    assert len(images.refused) == 2


def test_windows_separators_mean_the_same_row(folder: Path):
    metadata(folder, [{"image": "images\\a.png", "text": "x"}])
    assert pairs(FolderImages(folder)) == {"images/a.png": ("x",)}


def test_a_jsonl_caption_may_hold_any_line_separator(folder: Path):
    line = json.dumps({"file_name": "images/a.png", "text": "one\u2028two\x85"}, ensure_ascii=False)
    (folder / "metadata.jsonl").write_text(line, encoding="utf-8")
    assert pairs(FolderImages(folder)) == {"images/a.png": ("one\u2028two",)}


def error_of(path: Path) -> str:
    with pytest.raises(LimnerError) as caught:
        FolderImages(path)
    return str(caught.value)


def test_a_missing_folder_names_the_nearest_that_exists(tmp_path: Path):
    message = error_of(tmp_path / "data" / "mine")
    assert f"folder not found: {tmp_path / 'data' / 'mine'} " in message
    assert f"nearest existing one is {tmp_path})" in message
    assert "data.dataset_path" in message


def test_a_file_that_is_no_table_names_its_folder(folder: Path):
    write_json(folder)
    assert f"Use its folder, {folder / 'images'}" in error_of(folder / "images/a.png")
    assert pairs(FolderImages(folder / "metadata.json")) == WANTED


def test_no_known_layout_lists_them_and_says_what_was_found(folder: Path):
    message = error_of(folder)
    for wanted in (
        str(folder),
        "3 pictures, none with a caption",
        "metadata.json:",
        "jsonl",
        ".txt",
    ):
        assert wanted in message
    (folder / "images" / "metadata.jsonl").touch()
    assert f"but {folder / 'images'} has a metadata.jsonl; use that folder" in error_of(folder)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            '[\n {"image": "images/a.png" "text": "x"}]',
            ["line 2, column 27", '"text": "x"', "comma"],
        ),
        ('[{"image": "images/a.png", "text": "x"}', ["line 1, column 40", "the end of the text"]),
        ("", ["line 1, column 1", "the end of the text"]),
        ("[" * 100_000, ["nested too deeply"]),
        ("{}", ["an object with the keys none, not a list", '[{"image":']),
        ('{"images": [], "annotations": []}', ["'annotations'", "data.format=coco"]),
        ('"x"', ["'x', not a list"]),
        ("[]", ["has no rows"]),
        ("[3]", ["row 1", "found 3 instead of"]),
        ('[{"image": "images/a.png", "kaption": "x"}]', ["row 1", "Add 'text'"]),
        ('[{"imagee": "images/a.png", "text": "x"}]', ["row 1", "Rename 'imagee' to 'image'"]),
        ('[{"image": "images/a.png"}]', ["row 1", "found 'image'", "Add 'text'"]),
    ],
)
def test_metadata_that_cannot_be_read_says_where_and_what_to_do(folder: Path, text, wanted):
    metadata(folder, text)
    message = error_of(folder)
    for part in (str(folder), *wanted):
        assert part in message


def test_jsonl_and_csv_name_the_line(folder: Path):
    (folder / "metadata.csv").write_text(
        "file_name,text\nimages/a.png,red, ripe\n", encoding="utf-8"
    )
    assert re.search(r"more cells.*quotes.*; first: metadata\.csv, line 2", error_of(folder))
    (folder / "metadata.csv").write_text("id,text\nimages/a.png,red\n", encoding="utf-8")
    assert "the first line: there is no 'file_name'" in error_of(folder)
    (folder / "metadata.csv").write_text('file_name,text\nimages/a.png,"red\n', encoding="utf-8")
    assert re.search(r"the quote that opens .* not closed.*; first: .*line 2", error_of(folder))
    good = '{"file_name": "images/a.png", "text": "x"}\n'
    (folder / "metadata.jsonl").write_text(good + "\n{oops}", encoding="utf-8")
    [refused] = FolderImages(folder).refused
    assert refused.key == "metadata.jsonl, line 3"
    assert "line 3, column 2: not valid JSON" in refused.reason
    bad = b'{"file_name": "images/a.png", "text": "\xe4"}'
    (folder / "metadata.jsonl").write_bytes(good.encode() + bad)
    [refused] = FolderImages(folder).refused
    assert re.search(r"line 2: line 1 of the caption: byte 0xe4 is not valid UTF-8", refused.reason)


def test_where_no_row_is_usable_the_reasons_are_counted(folder: Path):
    rows = [{"image": f"images/gone{i}.png", "text": "x"} for i in range(5)]
    metadata(folder, [*rows, {"image": "images/a.png", "text": ""}])
    message = error_of(folder)
    assert "none of the 6 rows can be used" in message
    assert (
        "5 x the picture file is not there (names are case-sensitive); first: images/gone0.png"
        in message
    )
    assert "1 x the caption is empty" in message


def test_a_broken_picture_is_found_when_loaded_and_named(folder: Path):
    write_json(folder)
    (folder / "images/a.png").write_bytes(b"")
    images = FolderImages(folder)  # listing opens none
    with pytest.raises(ImageError, match=r"^images/a\.png: the file is empty"):
        images.load(images.rows[0], 8)


def test_listing_looks_at_each_directory_once_and_at_no_file(folder: Path, monkeypatch):
    rows = [{"image": f"images/{name}.png", "text": str(i)} for i in range(50) for name in "abc"]
    metadata(folder, rows)
    scanned = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (scanned.append(path), scandir(path))[1])
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("a picture was opened"))
    assert sum(len(row.captions) for row in FolderImages(folder).rows) == 150
    assert scanned == [folder / "images"]


def test_a_folder_travels_to_spawned_workers(folder: Path):
    write_json(folder)
    images = pickle.loads(pickle.dumps(FolderImages(folder, crop="pad")))
    assert np.array_equal(images.load(images.rows[1], 2), np.full((2, 2, 3), 20))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep file names in Unicode")
def test_a_file_name_that_is_not_unicode_is_refused(tmp_path: Path):
    for name in (b"good", b"\xe4"):
        write_image(tmp_path / f"{os.fsdecode(name)}.png")
        (tmp_path / f"{os.fsdecode(name)}.txt").write_text("x", encoding="utf-8")
    images = FolderImages(tmp_path)
    assert list(pairs(images)) == ["good.png"]
    assert "not valid Unicode" in images.refused[0].reason


def numbered(count: int) -> list[Row]:
    return [Row(f"images/{i:05d}.png", ("x",)) for i in range(count)]


def test_adding_rows_moves_none():
    rows = numbered(3000)
    few, many = rows[::3], rows[::-1]
    keys = [{source[i].key for i in split_rows(source, 0.9)[1]} for source in (few, many)]
    assert keys[0] == keys[1] & {row.key for row in few}


def test_the_split_is_the_same_on_every_machine_for_ever():
    # A change here would train on what older runs held out.
    held_out = [i for i in range(30) if is_held_out(f"images/image_{i:06d}.jpg", 0.9)]
    assert held_out == [7, 12, 15, 20, 27, 29]


def test_the_held_out_share_is_as_asked_for_also_of_a_sample():
    rows = numbered(20_000)
    for num_samples in (None, 4000):
        trained, held_out = split_rows(rows, 0.9, num_samples)
        total = num_samples or len(rows)
        assert len(trained) + len(held_out) == total
        assert not set(trained) & set(held_out)
        assert abs(len(held_out) / total - 0.1) < 4 * (0.09 / total) ** 0.5  # 4 standard errors
        assert trained.tolist() == sorted(trained)
    assert not len(split_rows(rows, 1.0)[1])


def test_a_sample_is_not_the_first_rows_and_only_grows():
    rows = numbered(1000)
    small, large = (set().union(*split_rows(rows, 0.9, n)) for n in (100, 200))
    assert small < large
    assert min(sampling_rank(rows[i].key) for i in large - small) > max(
        sampling_rank(rows[i].key) for i in small
    )
    assert not large <= set(range(500))
    extended = set().union(*split_rows(numbered(1100), 0.9, 100))
    assert len(small & extended) > 75  # of 100 more rows about 9 rank among the lowest 100


def test_the_data_sets_own_split_wins():
    rows = [Row(f"{i}", ("x",), held_out=i % 2 == 0) for i in range(10)]
    split = [part.tolist() for part in split_rows(rows, 1.0)]
    assert split == [[1, 3, 5, 7, 9], [0, 2, 4, 6, 8]]


def test_a_tiny_set_holds_out_one_row_and_always_the_same():
    rows = [row for row in numbered(200) if not is_held_out(row.key, 0.9)][:12]
    [chosen] = split_rows(rows, 0.9)[1]
    backwards = rows[::-1]
    assert backwards[split_rows(backwards, 0.9)[1][0]] == rows[chosen]
    assert not any(is_held_out(row.key, 0.9) for row in rows)
    assert not len(split_rows(rows[:9], 0.9)[1])
    assert not len(split_rows(rows, 1.0)[1])


def test_nothing_to_train_on_is_an_error_that_names_the_keys():
    for rows, train_split in ([], 0.9), (numbered(20), 0.0):
        with pytest.raises(LimnerError, match=r"no row is left.*num_samples.*train_split"):
            split_rows(rows, train_split)
    with pytest.raises(LimnerError, match=r"data\.num_samples is 0; it must be at least 1"):
        split_rows(numbered(20), 0.9, 0)
