"""Which picture of a tar has which caption: never another's, whatever the names are."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tar_files import png, tar_of

from limner.config import load_config
from limner.data import regular_files
from limner.data.formats import tar_samples
from limner.data.images import decode
from limner.data.open import open_image_dataset
from limner.data.streaming import tar_headers
from limner.errors import LimnerError

Entries = list[tuple[str, bytes]]
Build = Callable[..., Any]


@pytest.fixture(params=["here", "far away"])
def read(request: pytest.FixtureRequest, tmp_path: Path) -> Build:
    """read(entries or bytes, *overrides): a tar of these members, opened."""

    def build(tar: Entries | bytes, *words: str, name: str = "s.tar") -> Any:
        data = tar if isinstance(tar, bytes) else tar_of(tar)
        if request.param == "here":
            path = str(tmp_path / name)
            Path(path).write_bytes(data)
        else:
            files = fsspec.filesystem("memory")
            files.pipe_file(f"/{tmp_path.name}/{name}", data)
            path = f"memory://{tmp_path.name}/{name}"
        cache = f"cache.folder='{tmp_path / 'cache'}'"
        return open_image_dataset(load_config(None, [f"data.dataset_path='{path}'", cache, *words]))

    return build


def found_in(images: Any) -> dict[str, tuple[tuple[str, ...], int]]:
    """key -> (captions, the number that its picture was drawn with)."""
    return {
        row.key.partition("/")[2]: (row.captions, int(decode(images.image(row), 8)[0, 0, 0]))
        for row in images.rows
    }


def refused_in(images: Any) -> dict[str, str]:
    return {row.key.partition("/")[2]: row.reason for row in images.refused}


def test_what_lies_behind_the_end_of_a_tar_is_told(
    read: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tar(*numbers: int) -> bytes:
        return tar_of([e for n in numbers for e in ((f"{n}.png", png(n)), (f"{n}.txt", b"a"))])

    monkeypatch.setattr(tar_headers, "MOST_ZEROS", 2**15)
    whole = tar(0, 1, 2, 3)
    for name, data in (
        ("cat.tar", tar(0, 1) + tar(2, 3)),
        ("hole.tar", tar(0, 1).rstrip(b"\0") + bytes(2**14) + tar(2, 3)),
        ("end.tar", tar(0, 1) + bytes(2**16)),
        ("padded.tar", whole + bytes(2**14)),  # by tar -b, or a tape
    ):
        found = read(data, name=name)
        told = refused_in(found)
        if name == "padded.tar":
            assert (len(found.rows), told) == (4, {})
            continue
        assert sorted(found_in(found)) == ["0", "1"]
        assert "zeros that end a tar" in told["(the rest of the tar)"]
        assert ("not downloaded completely" if name == "end.tar" else "other data follow") in told[
            "(the rest of the tar)"
        ]


SHOTS = [f"Shot 2024-05-04 at 10.{minute}.{second}" for minute in (15, 16) for second in (21, 59)]


def test_screenshots_of_macos_keep_their_own_captions(read: Build) -> None:
    entries = [
        entry
        for number, shot in enumerate(SHOTS)
        for entry in ((f"{shot}.png", png(number)), (f"{shot}.txt", f"caption {number}".encode()))
    ]
    for order in (entries, entries[::-1], entries[::2] + entries[1::2]):
        found = read(order)
        assert found_in(found) == {s: ((f"caption {n}",), n) for n, s in enumerate(SHOTS)}
        assert found.refused == []


def test_a_screenshot_without_its_half_gets_no_other(read: Build) -> None:
    entries = [
        (f"{SHOTS[0]}.png", png(0)),
        (f"{SHOTS[0]}.txt", b"caption 0"),
        (f"{SHOTS[1]}.png", png(1)),
        (f"{SHOTS[2]}.txt", b"caption 2"),
    ]
    found = read(entries)
    assert found_in(found) == {SHOTS[0]: (("caption 0",), 0)}
    assert refused_in(found) == {
        SHOTS[1]: "there is no .txt or .json of that name in the tar",
        SHOTS[2]: "there is no picture of that name in the tar",
    }


def test_where_nothing_fits_all_is_refused(read: Build) -> None:
    entries = [
        (f"{SHOTS[0]}.png", png(0)),
        (f"{SHOTS[1]}.txt", b"caption 1"),
        (f"{SHOTS[2]}.txt", b"caption 2"),
        ("good.png", png(9)),
        ("good.txt", b"good"),
    ]
    found = read(entries)
    assert found_in(found) == {"good": (("good",), 9)}
    [(key, reason)] = refused_in(found).items()
    assert key == "Shot 2024-05-04 at 10"
    assert "it is unknown which belongs to which" in reason


def test_the_first_dot_counts_where_nothing_collides(read: Build) -> None:
    entries = [
        ("a/0001.input.png", png(1)), ("a/0001.caption.txt", b"one"),
        ("a/0002.png", png(2)), ("a/0002.short.txt", b"short"), ("a/0002.long.txt", b"long"),
        ("a/0003.png", png(3)), ("a/0003.txt", b"three"), ("a/0003.caption", b"also three"),
        ("a/0004.input.png", png(4)), ("a/0004.target.png", png(5)), ("a/0004.txt", b"four"),
        ("a/0005.jpg", png(6)), ("a/0005.mask.png", png(7)), ("a/0005.txt", b"five"),
        ("a/0006.png", png(8)), ("a/0006.meta.json", b"{}"),
        ("a/0006.json", json.dumps({"caption": "six"}).encode()),
    ]  # fmt: skip
    found = read(entries)
    assert found_in(found) == {
        "a/0001": (("one",), 1),
        "a/0002": (("short", "long"), 2),
        "a/0003": (("three", "also three"), 3),
        "a/0004": (("four",), 4),
        "a/0005": (("five",), 6),
        "a/0006": (("six",), 8),
    }
    reasons = refused_in(found)
    assert reasons["a/0004.target.png"] == "0004.target.png is a second picture; " + (
        "0004.input.png is used"
    )
    assert set(reasons) == {"a/0004.target.png", "a/0005.mask"}


def test_the_newest_member_of_a_name_counts(read: Build) -> None:
    """What `tar -r` appends replaces what was there, caption and picture each by itself."""
    first = [
        ("a.png", png(1)), ("a.txt", b"old"), ("b.png", png(2)), ("b.txt", b"b"),
        ("c.png", png(3)), ("c.json", json.dumps({"captions": ["c", "sea"]}).encode()),
    ]  # fmt: skip
    more = [("./a.txt", b"new"), ("b.png", png(22)), ("d.png", png(4)), ("d.txt", b"d"),
            ("a.txt", b"newest")]  # fmt: skip
    found = read(first + more)
    assert found_in(found) == {
        "a": (("newest",), 1),
        "b": (("b",), 22),
        "c": (("c", "sea"), 3),
        "d": (("d",), 4),
    }
    assert found.refused == []


def test_what_was_appended_to_a_tar_on_the_disk_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(tar_of([("a.png", png(1)), ("a.txt", b"old")]))
    words = [f"data.dataset_path='{path}'", f"cache.folder='{tmp_path / 'cache'}'"]
    assert found_in(open_image_dataset(load_config(None, words))) == {"a": (("old",), 1)}
    with tarfile.open(path, "a") as tar:
        about = tarfile.TarInfo("a.txt")
        about.size = 3
        tar.addfile(about, io.BytesIO(b"new"))
    assert found_in(open_image_dataset(load_config(None, words))) == {"a": (("new",), 1)}


def test_members_of_systems_are_passed_over(read: Build) -> None:
    entries = [("a.png", png(1)), ("a.txt", b"a")]
    for name in ("__MACOSX/._a", "__MACOSX/a", "@eaDir/a", "._a", "x/.ipynb_checkpoints/a"):
        entries += [(f"{name}.png", png(9)), (f"{name}.txt", b"of the system")]
    found = read(entries)
    assert found_in(found) == {"a": (("a",), 1)}
    assert found.refused == []


def test_composed_and_decomposed_names_are_one(read: Build) -> None:
    found = read([("cafe\u0301.png", png(1)), ("caf\xe9.txt", b"coffee")])
    assert found_in(found) == {"caf\xe9": (("coffee",), 1)}


def test_captions_in_other_encodings(read: Build) -> None:
    from written_texts import TRADITIONAL

    entries = [
        entry
        for number, text in enumerate(TRADITIONAL)
        for entry in ((f"{number}.png", png(number)), (f"{number}.txt", text.encode("big5")))
    ]
    found = read(entries)
    assert [row.captions[0] for row in found.rows] == TRADITIONAL
    assert "Captions of s.tar are not in UTF-8 and are read as big5hkscs" in found.description
    few = [("0.png", png(0)), ("0.txt", "紅蘋果".encode("big5")), ("1.png", png(1)),
           ("1.txt", b"good")]  # fmt: skip
    found = read(few, name="few.tar")
    assert "as big5hkscs it is '紅蘋果'" in refused_in(found)["0"]
    found = read(few, "data.encoding=big5", name="few.tar")
    assert [row.captions[0] for row in found.rows] == ["紅蘋果", "good"]


def test_bad_captions_are_refused_by_sample(read: Build) -> None:
    about = {
        "nul": b"a\0cat", "wide": "a cat".encode("utf-16-le"), "empty": b"  ", "huge": b"x" * 2**21,
        "list": b'{"captions": []}', "both": b'{"text": "", "caption": "filled"}',
        "deep": b"[" * 100_000, "not": b'{"title": "x"}', "number": b"[1, 2]",
    }  # fmt: skip
    entries = []
    for number, (key, data) in enumerate(about.items()):
        ending = "json" if data[:1] in (b"{", b"[") else "txt"
        entries += [(f"{key}.png", png(number)), (f"{key}.{ending}", data)]
    found = read(entries)
    assert [row.captions for row in found.rows] == [("filled",)]
    wanted = {
        "nul": "NUL character", "wide": "data.encoding to utf-16-le", "empty": "caption is empty",
        "huge": "2,097,152 bytes: too long for a caption", "list": "list of captions is empty",
        "deep": "not valid JSON", "not": "has no text, caption, captions, only 'title'",
        "number": "contains [1, 2], not an object",
    }  # fmt: skip
    reasons = refused_in(found)
    assert set(reasons) == set(wanted)
    for key, part in wanted.items():
        assert part in reasons[key]


def pax(name: str, contents: bytes, **headers: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        about = tarfile.TarInfo(name)
        about.size, about.pax_headers = len(contents), headers
        tar.addfile(about, io.BytesIO(contents))
    return file.getvalue()[:-1024].rstrip(b"\0")


def blocks(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


@pytest.mark.parametrize("size", ["9" * 5000, "-5", "1e3", "٣", ""])
def test_a_size_that_is_no_number_ends_the_tar_there(size: str, read: Build) -> None:
    good = tar_of([("a.png", png(1)), ("a.txt", b"a")])[: 4 * 512]
    found = read(good + blocks(pax("b.png", png(2), size=size)) + bytes(1024))
    assert found_in(found) == {"a": (("a",), 1)}
    [(key, reason)] = refused_in(found).items()
    assert key == "(the rest of the tar)"
    assert "a member's size is not a number" in reason
    assert len(reason) < 400


def test_names_of_absurd_lengths_or_with_nul_are_refused(read: Build) -> None:
    good = tar_of([("a.png", png(1)), ("a.txt", b"a")])[: 4 * 512]
    bad = blocks(pax("x.png", png(2), path="b\0c.png")) + blocks(
        pax("x.png", png(2), path="d" * 100_000 + ".png")
    )
    found = read(good + bad + bytes(1024))
    assert found_in(found) == {"a": (("a",), 1)}
    reasons = refused_in(found)
    assert len(reasons) == 2
    for key, reason in reasons.items():
        assert "\0" not in key
        assert len(key) < 300
        assert "NUL character" in reason


def test_a_picture_of_absurd_size_is_refused(read: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regular_files, "MAX_IMAGE_BYTES", 1000)
    found = read([("a.png", png(1)), ("a.txt", b"a"), ("b.png", b"x" * 1001), ("b.txt", b"b")])
    assert found_in(found) == {"a": (("a",), 1)}
    assert refused_in(found) == {"b": "b.png has 1,001 bytes: more than the maximum for a picture"}


def test_links_in_a_tar_are_no_pictures(read: Build) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind in (("a.png", tarfile.SYMTYPE), ("b.png", tarfile.LNKTYPE)):
            about = tarfile.TarInfo(name)
            about.type, about.linkname = kind, "/etc/passwd"
            tar.addfile(about)
    rest = tar_of([("a.txt", b"a"), ("b.txt", b"b"), ("c.png", png(3)), ("c.txt", b"c")])
    found = read(file.getvalue()[: 2 * 512] + rest)
    assert found_in(found) == {"c": (("c",), 3)}
    assert refused_in(found) == {
        "a": "a.png is a symbolic link, not a file",
        "b": "b.png is a hard link, not a file",
    }


def test_a_tar_of_nothing_usable_says_so(read: Build) -> None:
    with pytest.raises(
        LimnerError, match=r"(?s)none of the 1 rows can be used.*no \.txt or \.json"
    ):
        read([("a.png", png(1))])
    assert {"txt", "text", "caption"} <= tar_samples.TEXTS
