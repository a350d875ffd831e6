"""`limner check-data` on data as strangers have it: every fault by its kind, and no other."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from emoji_formats import emoji
from icc_profiles import cmyk_profile, rgb_profile
from PIL import Image
from spoilt_parquet import parquet, spoil
from tar_files import tar_of
from written_texts import TRADITIONAL

from limner.cli import main


def check(folder: Path, output: Path, *words: str) -> tuple[int, list[dict[str, str]]]:
    settings = ["data.image_size=16", "data.train_split=1", f"cache.folder='{output / 'cache'}'"]
    code = main(["check-data", str(folder), *settings, *words, "--output", str(output)])
    text = (output / "problems.jsonl").read_text(encoding="utf-8")
    return code, [json.loads(line) for line in text.splitlines()]


def kinds(found: list[dict[str, str]]) -> set[tuple[str, str]]:
    return {(line["kind"], line["key"]) for line in found}


def pair(folder: Path, number: int, caption: str | None = None, **options: object) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    one = emoji()[number]
    name = f"{number}.png"
    with Image.open(__import__("io").BytesIO(one.data)) as image:
        image.convert("RGB").save(folder / name, **options)
    (folder / f"{number}.txt").write_text(caption or one.captions[0], encoding="utf-8")
    return name


def test_the_output_may_be_beside_the_data_by_any_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        pair(tmp_path / "data", number)
    monkeypatch.chdir(tmp_path / "data")
    words = ["check-data", ".", "data.image_size=16", "--output"]
    assert main([*words, "../check"]) == 0
    assert (tmp_path / "check" / "check.json").is_file()
    inside = ["check", "../data/check", str(tmp_path / "data" / "x" / ".." / "check"), "."]
    if sys.platform != "win32":
        (tmp_path / "link").symlink_to(tmp_path / "data")
        inside.append("../link/check")
    for output in inside:
        assert main([*words, output]) == 2
        assert "is inside the data folder (" in capsys.readouterr().err
    assert not (tmp_path / "data" / "check").exists()


def test_a_folder_of_a_stranger(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number in range(12):
        pair(data, number)
    planted = {
        ("colour-profile", pair(data, 12, icc_profile=rgb_profile("Adobe RGB"))),
        ("damaged-profile", pair(data, 13, icc_profile=b"no profile")),
        ("control-characters", pair(data, 14, "a\0cat")),
        ("wrong-encoding", pair(data, 15)),
        ("wrong-encoding", pair(data, 16)),
        ("passed-over", "@eaDir"),
        ("passed-over", "lost+found"),
        ("passed-over", "outputs"),
        ("unsupported-format", "a.jxl"),
    }
    (data / "15.txt").write_bytes(b"caf\xe9")
    (data / "16.txt").write_bytes("a cat".encode("utf-16-le"))
    for folder in ("@eaDir", "lost+found", "outputs"):
        pair(data / folder, 17)
    (data / "outputs" / "config.yaml").touch()
    (data / "outputs" / "log.jsonl").touch()
    (data / "a.jxl").write_bytes(b"\xff\x0a" + bytes(40))
    (data / "a.txt").write_text("a house", encoding="utf-8")
    code, found = check(data, tmp_path / "out")
    assert code == 2
    assert kinds(found) == planted
    assert all(count == 1 for count in Counter((f["kind"], f["key"]) for f in found).values())


def test_a_table_of_a_stranger(tmp_path: Path) -> None:
    for number in range(10):
        pair(tmp_path / "data", number)
    lines = ["image,text"]
    lines += [f"{number}.png,caption number {number}" for number in range(6)]
    lines += ['6.png,"not closed', "7.png,fine", "../x.png,outside", f"{'A' * 5000},base64"]
    (tmp_path / "data" / "t.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    code, found = check(tmp_path / "data" / "t.csv", tmp_path / "out")
    assert code == 2
    assert Counter(line["kind"] for line in found) == {"broken-quotes": 1, "path-refused": 2}
    assert ("broken-quotes", "t.csv, line 8") in kinds(found)
    assert max(len(line["said"]) + len(line["key"]) for line in found) < 1000


def test_tars_of_a_stranger(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    good = [
        entry
        for n, one in enumerate(emoji()[:12])
        for entry in ((f"{n}.png", one.data), (f"{n}.txt", one.captions[0].encode()))
    ]
    bad = [("S 1.2.png", emoji()[12].data), ("S 1.3.png", emoji()[13].data), ("S 1.4.txt", b"x")]
    (data / "a.tar").write_bytes(tar_of([*good, *bad]))
    (data / "b.tar").write_bytes(tar_of([(f"b{n}", d) for n, d in good])[: 9 * 512 + 100])
    big5 = [
        entry
        for n, text in enumerate(TRADITIONAL)
        for entry in ((f"{n}.png", emoji()[14 + n].data), (f"{n}.txt", text.encode("big5")))
    ]
    (data / "c.tar").write_bytes(tar_of(big5))
    code, found = check(data, tmp_path / "out")
    assert code == 2
    wrong = [f for f in found if f["severity"] == "error"]
    assert kinds(wrong) == {
        ("ambiguous-sample", "a.tar/S 1"),
        ("damaged-file", "b.tar/(the rest of the tar)"),
    }
    [reading] = [f for f in found if f["kind"] == "reading"]
    assert "Captions of c.tar are not in UTF-8 and are read as big5hkscs" in reading["said"]


def test_parquet_of_a_stranger(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    spoil(parquet(tmp_path / "data" / "a.parquet", 0, 12), "text", 1)
    spoil(parquet(tmp_path / "data" / "b.parquet", 12, 8), "image.bytes", 0)
    code, found = check(tmp_path / "data", tmp_path / "out")
    assert code == 2
    assert kinds(found) == {
        ("damaged-file", "a.parquet/(rows 4 to 7)"),
        *(("damaged-file", f"b.parquet/{n}") for n in range(4)),
    }


def test_print_is_converted_and_noted_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number in range(10):
        pair(data, number)
    for name, options in (("with", {"icc_profile": cmyk_profile((50, 40, 0))}), ("without", {})):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (32, 32, 4), dtype=np.uint8)
        Image.frombytes("CMYK", (32, 32), pixels.tobytes()).save(data / f"{name}.tif", **options)
        (data / f"{name}.txt").write_text(f"print {name}", encoding="utf-8")
    code, found = check(data, tmp_path / "out")
    assert code == 0
    assert kinds(found) == {("cmyk", "with.tif"), ("cmyk", "without.tif")}
