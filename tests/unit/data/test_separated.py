"""CSV and TSV as people write them: no caption swallows rows, and no row is lost in silence."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from limner.config import load_config
from limner.data.dataset import ImageDataset
from limner.data.open import open_image_dataset
from limner.errors import LimnerError

Build = Callable[..., ImageDataset]
WORDS = "abcdef"


@pytest.fixture
def read(tmp_path: Path) -> Build:
    """read(text, name): a table beside the pictures a.png to f.png, opened."""
    for name in WORDS:
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")

    def build(text: str, name: str = "t.csv", *words: str) -> ImageDataset:
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        return open_image_dataset(
            load_config(None, [f"data.dataset_path='{tmp_path / name}'", *words])
        )

    return build


def captions(found: ImageDataset) -> dict[str, str]:
    return {row.key[0]: row.captions[0] for row in found.rows}


def test_a_caption_that_begins_with_a_quote_is_a_caption(read: Build) -> None:
    text = (
        'image,text\na.png,"Hello" she said\nb.png,a pear\nc.png,"well, quoted"\n'
        'd.png,6" nail\ne.png,"Say ""hi"", now"\n'
    )
    found = read(text)
    assert captions(found) == {
        "a": '"Hello" she said',
        "b": "a pear",
        "c": "well, quoted",
        "d": '6" nail',
        "e": 'Say "hi", now',
    }
    assert found.refused == []


@pytest.mark.parametrize("last", ["f.png,the end\n", 'f.png,"the end"\n', 'f.png,12" long\n'])
def test_a_quote_that_is_not_closed_swallows_no_row_and_is_named(read: Build, last: str) -> None:
    text = 'image,text\na.png,red\nb.png,"a cat\nc.png,a dog\nd.png,"a bird\ne.png,blue, green\n'
    found = read(text + last)
    assert list(captions(found)) == ["a", "c", "f"]
    reasons = [row.reason for row in found.refused]
    assert len(reasons) == 3
    for line, reason in zip((3, 5), reasons, strict=False):
        assert reason.startswith(f"t.csv, line {line}: the quote that opens in this line is not")
    assert reasons[2].startswith("t.csv, line 6: there are more cells than columns")


def test_a_quote_that_a_later_row_happens_to_close_swallows_none_between(read: Build) -> None:
    text = 'image,text\na.png,red\nb.png,"a cat\nc.png,a dog\nd.png,a bird"\ne.png,blue\n'
    found = read(text)
    assert captions(found) == {"a": "red", "c": "a dog", "d": 'a bird"', "e": "blue"}
    [refused] = found.refused
    assert refused.reason.startswith("t.csv, line 3: the quote that opens in this line is not")


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
@pytest.mark.parametrize("picture_first", [True, False])
def test_a_quote_that_the_very_next_row_happens_to_close_swallows_it_not(
    name: str, picture_first: bool, read: Build
) -> None:
    mark = "\t" if name == "t.tsv" else ","
    rows = [("image", "text"), ("a.png", "red"), ("b.png", '"Hello she said')]
    rows += [("c.png", 'a screen of 12"'), ("d.png", "blue")]
    lines = [mark.join(row if picture_first else row[::-1]) for row in rows]
    found = read("\n".join(lines), name)
    expected = {"a": "red", "c": 'a screen of 12"', "d": "blue"}
    if name == "t.tsv":  # which may be one without quotes
        assert captions(found) == {**expected, "b": '"Hello she said'}
        return
    assert captions(found) == expected
    [refused] = found.refused
    assert refused.reason.startswith("t.csv, line 3: the quote that opens in this line is not")


def test_a_caption_of_several_lines_that_names_a_file_stays_one(read: Build) -> None:
    assert captions(read('image,text\na.png,"one, of\nx, b.png, and two"\nc.png,next\n')) == {
        "a": "one, of\nx, b.png, and two", "c": "next"
    }  # fmt: skip
    assert captions(read('text,image\n"one\nof a.jpg, two",a.png\nnext,c.png\n')) == {
        "a": "one\nof a.jpg, two", "c": "next"
    }  # fmt: skip


def test_a_caption_of_several_lines_stays_one(read: Build) -> None:
    text = 'image,text\r\na.png,"one\r\ntwo, with a comma\r\n\r\nand ""four"""\r\nb.png,next\r\n'
    assert captions(read(text)) == {"a": 'one\r\ntwo, with a comma\r\n\r\nand "four"', "b": "next"}
    reverse = 'text,image\n"one\ntwo",a.png\n"three\n",b.png\nfour,c.png\n'
    assert captions(read(reverse)) == {"a": "one\ntwo", "b": "three", "c": "four"}
    broken = reverse + '"five,d.png\nsix,e.png\n'  # the good ones stay as they are
    found = read(broken)
    assert captions(found) == {"a": "one\ntwo", "b": "three", "c": "four", "e": "six"}
    assert found.refused[0].reason.startswith("t.csv, line 7: the quote that opens")


def test_a_tsv_has_quotes_or_none_as_it_fits(read: Build) -> None:
    plain = 'image\ttext\na.png\t"Hello" she said\nb.png\t"a cat\nc.png\ta dog"\n'
    assert captions(read(plain, "t.tsv")) == {
        "a": '"Hello" she said', "b": '"a cat', "c": 'a dog"'
    }  # fmt: skip
    text = io.StringIO(newline="")
    rows = [["image", "text"], ["a.png", 'tab\there, "quoted"'], ["b.png", "two\nlines"]]
    csv.writer(text, delimiter="\t").writerows(rows)
    assert captions(read(text.getvalue(), "t.tsv")) == {
        "a": 'tab\there, "quoted"', "b": "two\nlines"
    }  # fmt: skip


def test_a_cell_of_any_size_is_read(read: Build) -> None:
    text = f"image,data,text\na.png,{'A' * 400_208},a cat\n"
    assert captions(read(text)) == {"a": "a cat"}


def test_the_names_of_columns_may_not_be_open(read: Build) -> None:
    with pytest.raises(LimnerError, match=r"t\.csv, line 1: .*a quote that is not closed"):
        read('image,"text\na.png,red\n')


# Columns


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "image,text,text\na.png,one,two\n"),
        ("t.csv", "image,image,text\na.png,b.png,two\n"),
        ("t.tsv", "image\ttext\ttext\na.png\tone\ttwo\n"),
    ],
)
def test_a_doubled_column_is_refused_by_its_name(read: Build, name: str, text: str) -> None:
    doubled = "image" if "image,image" in text else "text"
    with pytest.raises(LimnerError, match=rf"2 columns are named '{doubled}'"):
        read(text, name)


def test_a_doubled_column_that_is_not_used_is_let_be(read: Build) -> None:
    assert captions(read("image,x,x,,,text\na.png,1,2,,,red\n")) == {"a": "red"}


def test_a_doubled_key_is_refused_by_row(read: Build) -> None:
    text = '[{"image": "a.png", "text": "one", "text": "two"}, {"image": "b.png", "text": "b"}]'
    found = read(text, "t.json")
    assert captions(found) == {"b": "b"}
    [refused] = found.refused
    assert refused.key == "a.png"
    assert "row 1: the key 'text' appears twice" in refused.reason
    lines = "\n".join(json.dumps(row) for row in json.loads(text))
    assert len(read(lines, "t.jsonl").rows) == 2


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_an_empty_column_gives_way_to_the_one_that_is_filled(
    name: str, read: Build, tmp_path: Path
) -> None:
    rows = [{"image": f"{w}.png", "text": "", "caption": f"a {w}", "prompt": "x"} for w in WORDS]
    if name == "t.csv":
        text = "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)])
    elif name == "t.jsonl":
        text = "\n".join(map(json.dumps, rows))
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
        text = None
    path = tmp_path / name
    found = (
        open_image_dataset(load_config(None, [f"data.dataset_path='{path}'"]))
        if text is None
        else read(text, name)
    )
    assert captions(found) == {w: f"a {w}" for w in WORDS}
    assert "The column 'text' is empty, so 'caption' is used instead" in found.description
    assert "columns image, caption" in found.description


def test_a_row_whose_caption_stands_elsewhere_says_so(read: Build) -> None:
    text = "image,text,caption\na.png,red,\nb.png,,blue\nc.png,,\n"
    found = read(text)
    assert captions(found) == {"a": "red"}
    reasons = {row.key: row.reason for row in found.refused}
    assert (
        "'text' is empty, but 'caption' is not; set data.caption_column to [text, caption]"
        in (reasons["b.png"])
    )
    assert "the caption is empty" in reasons["c.png"]
    both = read(text, "t.csv", "data.caption_column=[text, caption]")
    assert captions(both) == {"a": "red", "b": "blue"}


def test_a_column_that_was_asked_for_is_not_replaced(read: Build) -> None:
    with pytest.raises(LimnerError, match=r"none of the 1 rows can be used"):
        read("image,text,caption\na.png,,full\n", "t.csv", "data.caption_column=text")
