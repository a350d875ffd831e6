"""Text in whatever encoding: read where it is certain, asked about where it is not."""

import json
import os
from pathlib import Path

import emoji
import numpy as np
import pytest
from PIL import Image
from tiny import TINY
from written_texts import TRADITIONAL

from limner.cli import main
from limner.config import load_config
from limner.data.dataset import ImageDataset
from limner.data.formats.encodings import Guesses, decode, decode_together, detect, readings
from limner.data.formats.entries import check_caption
from limner.data.open import open_image_dataset
from limner.data.split import sampling_rank
from limner.errors import LimnerError

SIMPLIFIED = [
    "一只红色的苹果放在木桌上", "两只猫在窗边睡觉", "夕阳下的海滩和棕榈树", "一个小女孩骑着自行车",
    "雪山下的湖泊倒映着蓝天", "街道上行驶的黄色出租车", "老人坐在公园的长椅上看报纸", "红苹果",
]  # fmt: skip
JAPANESE = [
    "木のテーブルの上の赤いりんご", "窓辺で眠る二匹の猫", "夕日の浜辺とヤシの木", "緑茶と寿司の皿",
    "自転車に乗る小さな女の子", "青空を映す雪山の湖", "通りを走る黄色いタクシー", "赤いりんご",
]  # fmt: skip
KOREAN = [
    "나무 탁자 위의 빨간 사과", "창가에서 자는 고양이 두 마리", "석양의 해변과 야자수", "빨간 사과",
    "자전거를 타는 소녀", "눈 덮인 산 아래의 호수", "거리를 달리는 노란 택시", "활짝 핀 흰 연꽃",
]  # fmt: skip
ENCODED = {
    "gbk": ("gb18030", SIMPLIFIED),
    "gb18030": ("gb18030", SIMPLIFIED),
    "big5": ("big5hkscs", TRADITIONAL),
    "shift_jis": ("cp932", JAPANESE),
    "euc_jp": ("euc_jis_2004", JAPANESE),
    "euc_kr": ("cp949", KOREAN),
}


def pairs(folder: Path, captions: list[bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, caption in enumerate(captions):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_bytes(caption)
    return folder


def opened(path: Path, *words: str) -> ImageDataset:
    return open_image_dataset(load_config(None, [f"data.dataset_path='{path}'", *words]))


def captions_of(path: Path, *words: str) -> list[str]:
    return [row.captions[0] for row in opened(path, *words).rows]


@pytest.mark.parametrize("encoding", ENCODED)
def test_captions_beside_pictures_are_recognised_together(encoding: str, tmp_path: Path) -> None:
    name, captions = ENCODED[encoding]
    mixed = [text.encode(encoding) for text in captions] + ["紅 in UTF-8".encode(), b"plain"]
    found = opened(pairs(tmp_path, mixed))
    assert [row.captions[0] for row in found.rows] == [*captions, "紅 in UTF-8", "plain"]
    assert found.refused == []
    assert f"{len(captions)} as {name} (set data.encoding to be certain)" in found.description


@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.json"])
def test_tables_are_recognised_as_a_whole(name: str, encoding: str, tmp_path: Path) -> None:
    captions = ENCODED[encoding][1]
    for number in range(len(captions)):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    rows = [{"image": f"{i}.png", "text": text} for i, text in enumerate(captions)]
    if name.endswith("sv"):
        mark = "\t" if name == "t.tsv" else ","
        text = "\n".join(mark.join(row) for row in [["image", "text"], *(r.values() for r in rows)])
    elif name == "t.jsonl":
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    else:
        text = json.dumps(rows, ensure_ascii=False)
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert captions_of(tmp_path / name) == captions


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
def test_what_the_first_bytes_say_is_read(encoding: str, tmp_path: Path) -> None:
    assert captions_of(pairs(tmp_path, [t.encode(encoding) for t in SIMPLIFIED])) == SIMPLIFIED


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.json"])
def test_such_a_table_is_found_in_its_folder(name: str, encoding: str, tmp_path: Path) -> None:
    """As Excel and PowerShell write them; in Western letters, where every other byte is zero."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    mark = "\t" if name == "t.tsv" else ","
    row = '{"image": "a.png", "text": "a red apple"}'
    text = {".jsonl": row, ".json": f"[{row}]"}.get(
        Path(name).suffix, f"image{mark}text\r\na.png{mark}a red apple\r\n"
    )
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert captions_of(tmp_path) == captions_of(tmp_path / name) == ["a red apple"]


def test_a_table_is_found_by_columns_in_the_encoding_that_is_set(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_bytes("图片,文字\na.png,红苹果\n".encode("gbk"))
    words = ["data.encoding=gbk", "data.image_column=图片", "data.caption_column=文字"]
    assert captions_of(tmp_path, *words) == ["红苹果"]
    (tmp_path / "t.csv").write_bytes("image,text\na.png,a red apple\n".encode("utf-16-le"))
    with pytest.raises(LimnerError, match=r"set data\.encoding to utf-16-le"):
        opened(tmp_path)
    assert captions_of(tmp_path, "data.encoding=utf-16-le") == ["a red apple"]


def test_more_captions_are_read_in_the_encoding_of_the_others(tmp_path: Path) -> None:
    folder = pairs(tmp_path, ["苹果".encode("gbk")])
    more = json.dumps({"captions": ["红苹果", "一只誠\\"]}, ensure_ascii=False)  # 誠 ends with 5C
    (folder / "0.json").write_bytes(more.encode("gbk"))
    (row,) = opened(folder, "data.encoding=gb18030").rows
    assert row.captions == ("苹果", "红苹果", "一只誠\\")
    (folder / "0.txt").write_bytes(SIMPLIFIED[0].encode("gbk"))  # enough to be certain of
    more = json.dumps({"captions": SIMPLIFIED[1:]}, ensure_ascii=False)
    (folder / "0.json").write_bytes(more.encode("gbk"))
    (row,) = opened(folder).rows
    assert row.captions == tuple(SIMPLIFIED)


@pytest.mark.parametrize("count", [1, len(SIMPLIFIED)])
def test_captions_of_coco_are_read_as_others_are(count: int, tmp_path: Path) -> None:
    captions = SIMPLIFIED[-count:]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "x.png")
    coco = {
        "images": [{"id": 1, "file_name": "x.png"}],
        "annotations": [{"image_id": 1, "caption": caption} for caption in captions],
    }
    file = tmp_path / "annotations" / "captions_train.json"
    file.write_bytes(json.dumps(coco, ensure_ascii=False).encode("gbk"))
    for path in (tmp_path, file):
        (row,) = opened(path, "data.encoding=gb18030").rows
        assert row.captions == tuple(captions)
    if count > 1:  # certain without being told
        found = opened(tmp_path)
        assert found.rows[0].captions == tuple(captions)
        assert "read with a guessed encoding: 1 as gb18030" in found.description


def test_what_is_not_certain_is_asked_about(tmp_path: Path) -> None:
    found = opened(pairs(tmp_path, ["红苹果".encode("gbk"), b"good", "Äpfel".encode("cp1252")]))
    assert [row.captions for row in found.rows] == [("good",)]
    reasons = {row.key: row.reason for row in found.refused}
    assert (
        "byte 0xba is not valid UTF-8. Save it as UTF-8, or set data.encoding: " in reasons["0.png"]
    )
    assert "as gb18030 it is '红苹果'" in reasons["0.png"]
    assert "data.encoding: as cp1252 it is 'Äpfel'" in reasons["2.png"]
    assert captions_of(tmp_path, "data.encoding=gbk")[:2] == ["红苹果", "good"]
    assert captions_of(tmp_path, "data.encoding=cp1252") == ["ºìÆ»¹û", "good", "Äpfel"]


@pytest.mark.parametrize("encoding", ENCODED)
def test_the_key_says_it_and_utf_8_stays_what_it_is(encoding: str, tmp_path: Path) -> None:
    captions = [ENCODED[encoding][1][-1].encode(encoding), "蘋果".encode()]
    found = captions_of(pairs(tmp_path, captions), f"data.encoding={encoding}")
    assert found == [ENCODED[encoding][1][-1], "蘋果"]


def test_utf_16_without_a_mark_is_refused_with_what_to_do(tmp_path: Path) -> None:
    captions = ["a red apple".encode("utf-16-le"), "a pear".encode("utf-16-be"), b"good"]
    found = opened(pairs(tmp_path, captions))
    assert [row.captions for row in found.rows] == [("good",)]
    reasons = {row.key: row.reason for row in found.refused}
    for key, name in (("0.png", "utf-16-le"), ("1.png", "utf-16-be")):
        assert "is UTF-16 without a byte order mark" in reasons[key]
        assert f"set data.encoding to {name}" in reasons[key]
    (tmp_path / "1.txt").unlink()
    assert captions_of(tmp_path, "data.encoding=utf-16-le") == ["a red apple", "good"]
    table = "image,text\n0.png,a red apple\n".encode("utf-16-le")
    (tmp_path / "t.csv").write_bytes(table)
    with pytest.raises(
        LimnerError, match=r"UTF-16 without a byte order mark.*data\.encoding to utf-16-le"
    ):
        opened(tmp_path / "t.csv")
    assert captions_of(tmp_path / "t.csv", "data.encoding=utf-16-le") == ["a red apple"]


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("a\0cat", r"line 1 of the caption contains a NUL character: 'a\\x00cat'"),
        (
            "a cat\non \x1b[31ma mat",
            r"line 2 of the caption contains the control character '\\x1b'",
        ),
        ("a \x7fcat", r"the control character '\\x7f'"),
        ("caf\x82", r"the control character '\\x82'"),
        ("a cat\r\non\ta mat\x0b\x0c \x85 \u2028", None),
    ],
)
def test_control_characters_are_refused_and_white_space_is_not(
    caption: str, reason: str | None
) -> None:
    import re

    found = check_caption(caption)
    assert found is None if reason is None else re.search(reason, str(found))


def test_utf_8_that_is_damaged_stays_utf_8(tmp_path: Path) -> None:
    """One byte of a file that is gone makes it no Big5."""
    good = [text.encode() for text in SIMPLIFIED * 3]
    good[4] = good[4][:-1]
    found = opened(pairs(tmp_path, good))
    assert len(found.rows) == len(good) - 1
    [refused] = found.refused
    assert refused.key == "4.png"
    assert "not valid UTF-8" in refused.reason


def test_a_key_that_names_no_encoding_is_refused() -> None:
    for name in ("latin-2000", "base64", "big6"):
        with pytest.raises(
            LimnerError, match=r"data\.encoding: must be the name of an encoding, such as"
        ):
            load_config(None, [f"data.encoding={name}"])


def test_no_guess_is_wrong() -> None:
    """Names of emoji in ten languages and every encoding that has them: right, or not certain.

    Western text is never certain; a few lines of East Asian text are.
    """
    emoji.config.load_language()
    random = np.random.default_rng(0)
    languages = {
        "zh": ("gb18030", "gbk"), "ja": ("cp932", "euc_jp"), "ko": ("cp949",),
        "ru": ("cp1251", "koi8_r", "cp866"), "de": ("cp1252",), "fr": ("cp1252", "cp850"),
        "tr": ("cp1254",), "ar": ("cp1256",), "fa": ("cp1256",), "pt": ("cp1252",),
    }  # fmt: skip
    certain = total = 0
    for language, encodings in languages.items():
        names = sorted({d[language] for d in emoji.EMOJI_DATA.values() if language in d})
        for encoding in (*encodings, "utf-16-le", "utf-16-be"):
            for count in (1, 3, 10, 40):
                chosen = random.choice(names, count, replace=False)
                text = "\n".join(name.strip(":").replace("_", " ") for name in chosen)
                data = text.encode(encoding, errors="ignore")
                found = detect(data)
                if found is not None:
                    assert data.decode(found) == data.decode(encoding)
                east = language in ("zh", "ja", "ko") and not encoding.startswith("utf")
                assert east or found is None
                certain += east and count >= 10 and found is not None
                total += east and count >= 10
    assert certain >= 0.9 * total


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1254", "sarışın erkek açık cilt tonu"),  # too little, and two letters are Big5
        ("koi8_r", "указывающий налево палец средний тон кожи\nСанта Клаус очень темный тон кожи\n"
                   "флаг Ямайка"),  # narrow katakana, read as Shift-JIS
        ("gbk", "红苹果"),
    ],
)  # fmt: skip
def test_what_looks_like_an_encoding_is_not_taken_for_it(encoding: str, text: str) -> None:
    assert detect(text.encode(encoding)) is None


def test_texts_are_decoded_together_and_counted() -> None:
    guesses = Guesses()
    texts = [decode(text.encode("big5")) for text in TRADITIONAL]
    assert decode_together(texts, None, guesses) == TRADITIONAL
    assert dict(guesses.counts) == {"big5hkscs": len(TRADITIONAL)}
    assert str(Guesses()) == ""
    few = [decode("紅蘋果".encode("big5"))]
    assert decode_together(few, None) == few  # too little to be certain
    assert "as big5hkscs it is '紅蘋果'" in readings(few[0])


@pytest.mark.usefixtures("quick_end")
def test_a_name_that_is_no_utf_8_is_refused_and_listed_by_every_command(tmp_path: Path) -> None:
    """As a zip of a Chinese Windows leaves them behind on Linux."""
    folder = pairs(tmp_path / "data", [f"colour {n}".encode() for n in range(12)])
    name = os.fsdecode("红苹果".encode("gbk"))
    try:
        for ending in (".png", ".txt"):
            (folder / f"{name}{ending}").write_bytes((folder / f"1{ending}").read_bytes())
    except (OSError, UnicodeError):
        pytest.skip("this file system takes no such names")
    run, made, check = (tmp_path / kind for kind in ("run", "made", "check"))
    where = [f"data.dataset_path={folder}", "data.dataset_name=null", "data.num_samples=null"]
    output = f"training.output_dir={run}"
    assert main(["train", *TINY, *where, output, "training.max_steps=1"]) == 0
    assert main(["prepare", "--input", str(folder), "--output", str(made)]) == 0
    assert main(["check-data", str(folder), "data.image_size=16", "--output", str(check)]) == 2
    lines = (check / "problems.jsonl").read_text(encoding="utf-8").splitlines()
    listed = [
        *[json.loads(line) for line in (run / "refused.jsonl").read_text("utf-8").splitlines()],
        *json.loads((made / "refused.json").read_text(encoding="utf-8")),
        *[row for line in lines if (row := json.loads(line))["kind"] != "duplicate"],
    ]
    refused = [row for row in listed if "not valid Unicode" in str(row.values())]
    assert len(refused) == 3
    assert all(row["reason" if "reason" in row else "said"].startswith(name) for row in refused)
    assert not any(row["key"] == f"{name}.png" for row in listed)  # said once, not also as unnamed
    assert (check / "check.html").is_file()


def test_any_name_has_a_place_in_a_sample() -> None:
    assert 0 <= sampling_rank(os.fsdecode("红苹果.png".encode("gbk"))) < 1
    assert sampling_rank("a.png") != sampling_rank("b.png")
