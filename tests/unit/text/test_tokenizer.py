"""Captions to token ids: any text in any language, and back."""

import pickle
import unicodedata
from pathlib import Path

import pytest
import torch

from limner.errors import LimnerError
from limner.text.tokenizer import CaptionTokenizer

CAPTIONS = [
    "a red apple",
    "a green apple",
    "two red apples",
    "红苹果",
    "thumbs up, dark skin tone",
] * 3
WRITINGS = [
    "a red apple",
    "红苹果と林檎",
    "Яблоко",
    "تفاحة حمراء",
    "लाल सेब",
    "แอปเปิ้ลแดง",
    "👩🏿‍🚀🏳️‍🌈",
    "e\u0301 \ufb01 𝔘𝔫𝔦",
    "\x00\x07\u202e\ufffe\U0010fffd",
    "<pad> <start> </s> [UNK] Ġ",
]


@pytest.fixture(scope="module")
def tokenizer() -> CaptionTokenizer:
    return CaptionTokenizer.learn(CAPTIONS, vocab_size=320, max_length=64)


def words(tokenizer: CaptionTokenizer, ids: torch.Tensor) -> str:
    return tokenizer.tokenizer.decode([i for i in ids.tolist() if i > 1]).strip()


@pytest.mark.parametrize("text", WRITINGS)
def test_every_writing_is_spelled_out_in_known_tokens(
    text: str, tokenizer: CaptionTokenizer
) -> None:
    ids = tokenizer(text)
    assert ids.dtype == torch.int64
    assert ids.shape == (64,)
    assert ids.max() < tokenizer.vocab_size <= 320
    assert words(tokenizer, ids) == unicodedata.normalize("NFKC", text).lower()


def test_half_a_surrogate_pair_is_a_question_mark(tokenizer: CaptionTokenizer) -> None:
    broken = "a red \udce4pple"
    assert torch.equal(tokenizer(broken), tokenizer("a red ?pple"))
    assert tokenizer.length(broken) == tokenizer.length("a red ?pple")
    CaptionTokenizer.learn([broken, "an apple"], 320, 64)


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_the_empty_prompt_is_the_start_alone(text: str, tokenizer: CaptionTokenizer) -> None:
    assert tokenizer(text).tolist() == [1] + [0] * 63
    assert tokenizer.length(text) == 1


def test_names_of_special_tokens_are_plain_text(tokenizer: CaptionTokenizer) -> None:
    for text in ("<pad>", "a <pad> b", "<start>"):
        ids = tokenizer(text)[1 : tokenizer.length(text)]
        assert (ids > 1).all()


def test_case_and_unicode_forms_are_one_prompt(tokenizer: CaptionTokenizer) -> None:
    same = ["a red café", "A Red CAFÉ", "a red cafe\u0301 ", "ａ red café"]
    assert len({tuple(tokenizer(text).tolist()) for text in same}) == 1


def test_captions_teach_their_words(tokenizer: CaptionTokenizer) -> None:
    assert tokenizer.length("a red apple") == 4  # start and three words
    assert tokenizer.length("a xqz apple") > 5


def test_a_long_caption_is_cut_and_its_length_told() -> None:
    short = CaptionTokenizer.learn(CAPTIONS, 320, max_length=6)
    text = "thumbs up, dark skin tone, two red apples"
    whole = CaptionTokenizer.learn(CAPTIONS, 320, max_length=64)
    assert short(text).tolist() == whole(text)[:6].tolist()
    assert short.length(text) == whole.length(text) == int((whole(text) > 0).sum()) > 6


def test_the_same_captions_teach_the_same_tokens() -> None:
    text = "A Red Apple and thumbs up 红苹果"
    first = CaptionTokenizer.learn(CAPTIONS, 320, 64).tokenizer.to_str()
    assert CaptionTokenizer.learn(iter(CAPTIONS), 320, 64).tokenizer.to_str() == first
    assert CaptionTokenizer.learn(CAPTIONS[::-1], 320, 64)(text).tolist() == (
        CaptionTokenizer.learn(CAPTIONS, 320, 64)(text).tolist()
    )


@pytest.mark.parametrize("text", WRITINGS)
def test_saved_or_sent_to_a_worker_it_reads_alike(
    text: str, tokenizer: CaptionTokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = CaptionTokenizer.load(tmp_path / "tokenizer.json", 64)
    sent = pickle.loads(pickle.dumps(tokenizer))
    assert loaded.vocab_size == tokenizer.vocab_size
    assert torch.equal(loaded(text), tokenizer(text))
    assert torch.equal(sent(text), tokenizer(text))


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(LimnerError, match=r"tokenizer\.json is missing"):
        CaptionTokenizer.load(path, 64)
    path.write_text('{"model": 3}', encoding="utf-8")
    with pytest.raises(LimnerError, match=r"tokenizer\.json is not a Limner tokenizer"):
        CaptionTokenizer.load(path, 64)
