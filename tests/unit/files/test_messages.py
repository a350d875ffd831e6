"""What stands in the data comes into a message short, and harmless to a terminal."""

from typing import Any

import pytest

from limner.messages import bytes_in_words, parameters_in_words, shorten, shorten_name


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("a cat", "'a cat'"),
        ("x" * 60, repr("x" * 60)),
        ("iVBORw0KGgo" + "A" * 400_197, f"'iVBORw0KGgo{'A' * 49}…' (400,208 characters)"),
        ("\x1b[2Jgone\0\n", r"'\x1b[2Jgone\x00\n'"),
        ("caf\udce9", r"'caf\udce9'"),
        ("\u202egnp.exe", r"'\u202egnp.exe'"),  # right-to-left override
        (b"x" * 2000, "2,000 bytes"),
        (None, "None"),
        (7, "7"),
        ({"en": "a cat"}, "{'en': 'a cat'}"),
        (list(range(1000)), "[0, 1, 2, 3, ...]"),
    ],
)
def test_a_value_in_a_message(value: object, wanted: str) -> None:
    assert shorten(value) == wanted


def test_a_value_of_any_depth_and_size_is_short() -> None:
    deep: Any = "x" * 1000
    for _ in range(5000):
        deep = [deep]
    wide = {f"key {i}" * 50: "y" * 500 for i in range(5000)}
    for value in (deep, wide, 10**4000, ["z" * 10**6] * 3):
        assert len(shorten(value)) <= 120


def test_a_name_in_a_message() -> None:
    assert shorten_name("photos/a b 苹果.jpg") == "photos/a b 苹果.jpg"
    assert shorten_name("a\x1b]0;x\x07\udce4.png") == r"a\x1b]0;x\x07\udce4.png"
    name = shorten_name("d/" * 300 + "end.png")
    assert name.startswith("d/d/")
    assert name.endswith("end.png (607 characters)")
    assert len(name) < 200


# Counts


@pytest.mark.parametrize(
    ("count", "words"),
    [(8_061_234, "8.1M"), (34_567, "35k"), (120_000, "0.1M"), (1.25e9, "1,250.0M")],
)
def test_parameters_are_written_in_one_way(count: float, words: str) -> None:
    assert parameters_in_words(count) == words


def test_bytes_are_written_in_one_way() -> None:
    assert [bytes_in_words(n) for n in (98 * 2**20, 1.2 * 2**30)] == ["98 MiB", "1.20 GiB"]
