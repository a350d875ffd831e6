"""Where a model looks at each word."""

from pathlib import Path

import pytest
import torch
from made_up import made_up_checkpoint, made_up_in_latents
from torch import Tensor

from limner import ImageGenerator
from limner.inference.word_attention import WordAttention, recorded, words_of
from limner.models import modern
from limner.text.tokenizer import CaptionTokenizer


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> ImageGenerator:
    return ImageGenerator(
        made_up_checkpoint(tmp_path_factory.mktemp("made") / "checkpoint-3"), device="cpu"
    )


def test_what_is_recorded_are_the_weights_of_the_softmax(
    generator: ImageGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        weights = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf).softmax(dim=-1)
        there.append(weights[0, :, :, : -q.shape[2]].mean(dim=0).T)
        return weights @ v

    monkeypatch.setattr(modern, "attend", attend)
    with recorded(generator.model) as attention:
        generator.generate("a small red circle", num_inference_steps=3, guidance_scale=2.0)
    assert attention is not None
    assert attention.total is not None
    assert attention.count == len(there)
    assert torch.allclose(attention.total, torch.stack(there).sum(dim=0), rtol=1e-4, atol=1e-6)


def test_recording_changes_no_picture_and_ends(generator: ImageGenerator) -> None:
    plain = generator.generate("a small red circle", seed=4)
    with recorded(generator.model) as attention:
        again = generator.generate("a small red circle", seed=4)
    assert again.tobytes() == plain.tobytes()
    assert attention is not None
    count = attention.count
    generator.generate("a small red circle")
    assert attention.count == count


def test_a_map_is_that_of_all_tokens_of_a_word() -> None:
    found = WordAttention()
    found.add(torch.arange(12.0).reshape(3, 4))
    found.add(torch.zeros(3, 4))
    maps = found.of_words([("one", (0,)), ("two", (1, 2))], 2, 2)
    assert maps.tolist() == [[[0, 0.5], [1, 1.5]], [[6, 7], [8, 9]]]


def test_an_architecture_that_attends_to_no_word_says_so(tmp_path: Path) -> None:
    path = made_up_checkpoint(tmp_path / "checkpoint-3", "model.architecture=dit")
    with recorded(ImageGenerator(path, device="cpu").model) as attention:
        assert attention is None


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a small red circle", ["a", "small", "red", "circle"]),
        ("  Two  blue squares, please", ["Two", "blue", "squares,", "please"]),
        ("红苹果", ["红", "苹", "果"]),
        ("a 红 apple", ["a", "红", "apple"]),
        ("", []),
    ],
)
def test_words_are_what_stands_between_spaces(prompt: str, words: list[str]) -> None:
    tokenizer = CaptionTokenizer.learn(["a small red circle"], 300, 64)
    found = words_of(prompt, tokenizer)
    assert [text for text, _ in found] == words
    positions = [position for _, some in found for position in some]
    assert positions == sorted(set(positions))
    assert all(0 < position < tokenizer.length(prompt) for position in positions)


def test_words_beyond_the_limit_are_not_read_and_not_shown() -> None:
    tokenizer = CaptionTokenizer.learn(["a b c d"], 300, 64)
    tokenizer.max_length = tokenizer.length("a b")
    assert [text for text, _ in words_of("a b c d", tokenizer)] == ["a", "b"]


def test_a_pretrained_encoder_tells_its_words(tmp_path: Path) -> None:
    generator = ImageGenerator(
        made_up_in_latents(tmp_path / "checkpoint-3", tmp_path / "parts"), device="cpu"
    )
    words = words_of("a red circle", generator.words)
    assert [text for text, _ in words] == ["a", "red", "circle"]
    with recorded(generator.model) as attention:
        generator.generate("a red circle")
    assert attention is not None
    side = 32 // generator.autoencoder.downsampling // generator.patch
    assert attention.of_words(words, side, side).shape == (3, side, side)
    long, tokenizer = "a small red circle above a green cross " * 9, generator.words.tokenizer  # type: ignore[union-attr]
    cut = tokenizer(long, truncation=True, max_length=generator.words.max_length)["input_ids"]
    ends = {i for i, one in enumerate(cut) if one in tokenizer.all_special_ids}
    found = {position for _, positions in words_of(long, generator.words) for position in positions}
    assert ends
    assert not ends & found
