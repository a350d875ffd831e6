"""Text encoders of transformers: parity with the library, padding without effect."""

from pathlib import Path
from typing import Any

import pretrained
import pytest
import torch
import transformers

from limner.config import TextEncoderConfig
from limner.errors import LimnerError
from limner.models.text_adapter import TextAdapter
from limner.pretrained.text_encoder import PretrainedTextEncoder
from limner.text.batch import TextEmbeddings

CPU, F32 = torch.device("cpu"), torch.float32
CAPTIONS = ["a red apple", "", "a cat on a chair, seen", "红苹果"]
MAKERS: dict[str, Any] = {
    "clip": pretrained.tiny_clip,
    "whole clip": lambda folder: pretrained.tiny_clip(folder, whole=True),
    "t5": pretrained.tiny_t5,
    "whole t5": lambda folder: pretrained.tiny_t5(folder, whole=True),
    "t5gemma": pretrained.tiny_t5gemma,
    "xlm-roberta": pretrained.tiny_bert,
    "qwen": pretrained.tiny_qwen,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("encoders")
    return {name: make(top / name.replace(" ", "-")) for name, make in MAKERS.items()}


def opened(folder: Path, **settings: Any) -> PretrainedTextEncoder:
    reader = PretrainedTextEncoder(TextEncoderConfig(pretrained_model_name=str(folder), **settings))
    reader.load(CPU, F32)
    return reader


@pytest.mark.parametrize("name", MAKERS)
def test_a_caption_is_read_the_same_whatever_it_is_padded_to(
    name: str, folders: dict[str, Path]
) -> None:
    reader = opened(folders[name])
    together = reader.encode(CAPTIONS)
    assert together.states.shape[-1] == reader.width == reader.text_size == 16
    for i, caption in enumerate(CAPTIONS):
        alone = reader.encode([caption])
        length = alone.states.shape[1]
        assert length >= 1
        assert int(together.mask[i].sum()) == length
        assert torch.allclose(together.states[i, :length], alone.states[0], atol=1e-5)
        assert torch.allclose(together.vector[i], alone.vector[0], atol=1e-5)
        assert not together.states[i, length:].any()


@pytest.mark.parametrize("name", MAKERS)
def test_words_and_their_order_count(name: str, folders: dict[str, Path]) -> None:
    vectors = opened(folders[name]).encode(["red on blue", "blue on red", "red on blue"]).vector
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-4)
    assert torch.allclose(vectors[0], vectors[2], atol=1e-6)


def test_clip_is_the_library_s_text_model_and_its_summary(folders: dict[str, Path]) -> None:
    for name in ("clip", "whole clip"):
        model = transformers.CLIPTextModel.from_pretrained(folders[name]).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folders[name])
        with torch.no_grad():
            expected = model(**tokenizer(CAPTIONS[:1], return_tensors="pt"))
        states, vector = opened(folders[name]).rows(CAPTIONS[:1])[0]
        assert torch.allclose(states, expected.last_hidden_state[0], atol=1e-5)
        assert torch.allclose(vector, expected.pooler_output[0], atol=1e-5)
        assert torch.allclose(vector, states[-1], atol=1e-5)  # the state of the end token


def test_t5_is_the_encoder_of_the_whole_model(folders: dict[str, Path]) -> None:
    model = transformers.T5Model.from_pretrained(folders["whole t5"]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["whole t5"])
    with torch.no_grad():
        expected = model.encoder(**tokenizer(CAPTIONS[:1], return_tensors="pt"))[0][0]
    reader = opened(folders["whole t5"])
    states, vector = reader.rows(CAPTIONS[:1])[0]
    assert torch.allclose(states, expected, atol=1e-5)
    assert torch.allclose(vector, expected.mean(dim=0), atol=1e-5)
    assert not any("decoder" in name for name, _ in reader.model.named_parameters())


def test_a_language_model_sums_up_in_its_last_token(folders: dict[str, Path]) -> None:
    model = transformers.Qwen3Model.from_pretrained(folders["qwen"]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["qwen"])
    ids = torch.tensor([tokenizer(CAPTIONS[0])["input_ids"]])
    with torch.no_grad():
        expected = model(ids).last_hidden_state[0]
    states, vector = opened(folders["qwen"]).rows(CAPTIONS[:1])[0]
    assert torch.allclose(states, expected, atol=1e-5)
    assert torch.allclose(vector, expected[-1], atol=1e-5)


def test_in_a_pipeline_the_tokenizer_is_beside(tmp_path: Path, folders: dict[str, Path]) -> None:
    inner, tokenizer = tmp_path / "text_encoder", tmp_path / "tokenizer"
    inner.mkdir()
    tokenizer.mkdir()
    (tmp_path / "model_index.json").write_text("{}", "utf-8")
    for path in folders["clip"].iterdir():
        place = tokenizer if "token" in path.name else inner
        (place / path.name).write_bytes(path.read_bytes())
    found = opened(tmp_path).encode(CAPTIONS)
    assert torch.equal(found.states, opened(folders["clip"]).encode(CAPTIONS).states)


def test_how_much_is_read_is_known_before_and_asking_for_more_is_refused(
    folders: dict[str, Path],
) -> None:
    reader = opened(folders["clip"])
    assert reader.max_length == 24  # all that its positions allow
    assert opened(folders["t5"]).max_length == 128
    assert reader.length("x" * 100) == 102
    long = reader.encode(["x" * 100])
    assert int(long.mask.sum()) == 24
    short = opened(folders["clip"], max_length=5)
    assert int(short.encode(["x" * 100]).mask.sum()) == 5
    with pytest.raises(LimnerError, match=r"max_length: 25, but .* reads at most 24 tokens"):
        opened(folders["clip"], max_length=25)


def test_half_a_surrogate_pair_is_read_as_something(folders: dict[str, Path]) -> None:
    assert torch.isfinite(opened(folders["clip"]).encode(["a \ud83d b"]).states).all()


def test_weights_that_are_missing_are_never_made_up(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    for path in folders["t5"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=258, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
        )
    ).save_pretrained(tmp_path / "less")
    weights = (tmp_path / "less" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(LimnerError, match=r"lacks \d+ weights of a .*such as encoder\.block\.1"):
        opened(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(LimnerError, match="cannot be loaded"):
        opened(tmp_path)


def test_the_adapter_is_deaf_to_the_length_of_states_and_to_padding() -> None:
    torch.manual_seed(0)
    adapter = TextAdapter(16, 64)
    states, vector = torch.randn(1, 5, 16), torch.randn(1, 16)
    mask = torch.ones(1, 5, dtype=torch.bool)
    text = adapter(TextEmbeddings(states, mask, vector))
    assert text.tokens.shape == (1, 5, 64)
    assert text.pooled().shape == (1, 64)
    louder = states.clone()
    louder[:, 0] *= 1000  # as language models have it at their first token
    loud = adapter(TextEmbeddings(louder, mask, 3 * vector))
    assert torch.allclose(loud.tokens, text.tokens, atol=1e-4)
    assert torch.allclose(loud.pooled(), text.pooled(), atol=1e-4)


def test_stacked_captions_keep_their_states() -> None:
    rows = [(torch.full((n, 2), float(n)), torch.full((2,), float(n))) for n in (1, 3)]
    text = TextEmbeddings.stack(rows, 4)
    assert text.mask.tolist() == [[True] + [False] * 3, [True] * 3 + [False]]
    assert text.states[:, :, 0].tolist() == [[1, 0, 0, 0], [3, 3, 3, 0]]
    assert text.vector[:, 0].tolist() == [1, 3]
