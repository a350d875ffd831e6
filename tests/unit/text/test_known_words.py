"""Which words of a prompt were in no training caption."""

import random

import pytest

from limner.errors import LimnerError
from limner.text import known_words
from limner.text.known_words import KnownWords, words_in

CAPTIONS = ["a red circle above the Blue square", "a red apple", "elegant people, many apples"]


def said(prompt: str, captions: list[str] = CAPTIONS) -> str | None:
    return KnownWords.of(captions).in_words([prompt])


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a red circle",
        "RED Circle!",
        "a blue apple, an elegant square",
        "ｒｅｄ",
        "42 %",
        "a a on",
    ],
)
def test_of_known_words_nothing_is_said(prompt: str) -> None:
    assert said(prompt) is None


def test_a_word_of_no_caption_is_named() -> None:
    assert said("a red dog") == '"dog" is in no caption that this model was trained on'


def test_several_are_named_once_each() -> None:
    told = said("a dog, a purple dog and a Dog")
    assert told == '"dog" and "purple" are in no caption that this model was trained on'
    assert said("dogs cats hats boots sheep geese") == (
        '"dogs", "cats", "hats", "boots" and 2 more are in no caption that this model was trained '
        "on"
    )


def test_a_known_word_that_is_spelled_alike_is_suggested() -> None:
    told = said("a crcle and some sqares")
    assert told is not None
    assert told.endswith('; did you mean "circle" or "square"?')


def test_words_that_name_nothing_are_not_reported() -> None:
    assert said("a red circle with the square of an apple", ["red circle square apple"]) is None


@pytest.mark.parametrize(
    ("prompt", "new"),
    [
        ("一个红色的圆", []),
        ("红圆", []),  # no caption has them side by side, and both are known
        ("紫色的大象", ["紫", "大象"]),
        ("赤い丸を", []),
        ("青い丸", ["青"]),
        ("사과를", []),
        ("สีแดง", []),
    ],
)
def test_without_spaces_only_characters_that_no_caption_has_count(
    prompt: str, new: list[str]
) -> None:
    captions = ["红色的圆", "赤い丸", "사과가 있다", "วงกลมสีแดง"]
    assert KnownWords.of(captions).unknown_in(prompt) == new


def test_every_caption_is_known_in_any_script() -> None:
    captions = [
        "हिन्दी में लाल वृत्त",
        "كرة حمراء",
        "дом у́ моря",
        "o'clock — naïve",
        "Ⅷ İstanbul",
        "ｶﾒﾗ",
    ]
    known = KnownWords.of(captions)
    for caption in captions:
        assert known.unknown_in(caption) == [], caption
        assert known.unknown_in(caption.upper()) == [], caption


def test_it_is_the_same_in_any_order_and_however_it_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captions = [f"a {word} {word[::-1]}" for word in ("red", "blue", "apple") for _ in range(3)]
    once = KnownWords.of(captions)
    random.Random(0).shuffle(captions)
    assert KnownWords.of(captions) == once
    assert once.words[0] == "a"
    monkeypatch.setattr(known_words, "AT_ONCE", 2)
    assert KnownWords.of(captions) == once


def test_of_too_many_words_the_most_frequent_are_kept_and_the_sentence_is_weaker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(known_words, "MOST", 2)
    monkeypatch.setattr(known_words, "AT_ONCE", 2)
    rare = [f"rare{chr(97 + i)}{chr(97 + j)}" for i in range(10) for j in range(10)]
    known = KnownWords.of([*(f"red circle {word}" for word in rare)])
    assert known == KnownWords(("circle", "red"), complete=False)
    told = known.in_words(["rareaa"])
    assert told is not None
    assert told.startswith('"rareaa" is in no caption, or in very few, that this model')
    whole = KnownWords.of(["red circle"])
    assert whole.complete
    assert whole.joined(KnownWords.of(["red dog"])) == KnownWords(("circle", "red"), False)


def test_another_models_words_are_added() -> None:
    both = KnownWords.of(["red circle"]).joined(KnownWords.of(["red dog"]))
    assert both == KnownWords(("circle", "red", "dog"))
    assert both.unknown_in("a red dog, circle, cat") == ["cat"]
    assert not both.joined(KnownWords((), complete=False)).complete


def test_what_is_written_is_read() -> None:
    for known in (KnownWords.of(CAPTIONS), KnownWords(("圆",), complete=False)):
        assert KnownWords.from_json(known.to_json(), "words.json") == known


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"words": 3}', '{"words": [3]}', '{"words": ["a\\u001b[2J"]}', "[" * 10**5],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(LimnerError, match=r"^words\.json is damaged"):
        KnownWords.from_json(text, "words.json")


def test_a_very_long_word_is_none() -> None:
    assert words_in("x" * 65 + " red") == ["red"]
