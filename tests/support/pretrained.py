"""Tiny pretrained parts with random weights, as save_pretrained writes them."""

from pathlib import Path
from typing import Any

import torch


def tiny_autoencoder(folder: Path, latent_channels: int = 4, **settings: Any) -> Path:
    """AutoencoderKL, 4 pixels to a latent."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        norm_num_groups=4,
        latent_channels=latent_channels,
        **settings,
    ).save_pretrained(folder)
    return folder


def tiny_16_channels(folder: Path) -> Path:
    """As FLUX has it: 16 channels, a shift factor, no quant convolutions."""
    return tiny_autoencoder(
        folder,
        16,
        shift_factor=0.1159,
        scaling_factor=0.3611,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def tiny_taesd(folder: Path) -> Path:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).save_pretrained(folder)
    return folder


def tiny_dc(folder: Path) -> Path:
    """AutoencoderDC with an attention block in the middle, 4 pixels to a latent, 8 channels."""
    from diffusers import AutoencoderDC

    torch.manual_seed(0)
    kinds, channels, layers = ("ResBlock", "ResBlock", "EfficientViTBlock"), (8, 16, 16), (1, 1, 1)
    AutoencoderDC(
        latent_channels=8,
        attention_head_dim=4,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        scaling_factor=0.41,
    ).save_pretrained(folder)
    return folder


def _tokenizer(folder: Path, begin: str | None, end: str | None, pad: str | None, most: int) -> int:
    """A byte-level tokenizer with special tokens around each caption; returns its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = list(dict.fromkeys(token for token in (pad, begin, end) if token))
    vocabulary = {token: i for i, token in enumerate(special)}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begin or end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(filter(None, (begin, "$A", end))),
            special_tokens=[(token, vocabulary[token]) for token in (begin, end) if token],
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token=end,
        pad_token=pad,
        model_max_length=most,
    ).save_pretrained(folder)
    return len(vocabulary)


def tiny_clip(folder: Path, whole: bool = False) -> Path:
    """CLIPTextModel of width 16 that reads 24 tokens; `whole`: with its other half."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

    size = _tokenizer(folder, "<s>", "</s>", "</s>", 24)
    torch.manual_seed(0)
    text = {
        "vocab_size": size,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
        "bos_token_id": 1,
        "eos_token_id": 0,  # the padding token comes first in the vocabulary, and is this one
        "pad_token_id": 0,
        "initializer_factor": 8.0,  # or the words would hardly count
    }
    if whole:
        sight = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        sight |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
        config = CLIPConfig(text_config=text, vision_config=sight, projection_dim=8)
        CLIPModel(config).save_pretrained(folder)
    else:
        CLIPTextModel(CLIPTextConfig(**text)).save_pretrained(folder)
    return folder


def tiny_t5(folder: Path, whole: bool = False) -> Path:
    """T5's encoder of width 16; `whole`: with the decoder, as published."""
    from transformers import T5Config, T5EncoderModel, T5Model

    size = _tokenizer(folder, None, "</s>", "<pad>", 512)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    (T5Model if whole else T5EncoderModel)(config).save_pretrained(folder)
    return folder


def tiny_qwen(folder: Path) -> Path:
    """A decoder language model, with no token before, after, or for padding of a caption."""
    from transformers import Qwen3Config, Qwen3Model

    size = _tokenizer(folder, None, None, None, 10**30)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=size, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=512,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    Qwen3Model(config).save_pretrained(folder)
    return folder


def tiny_bert(folder: Path) -> Path:
    from transformers import XLMRobertaConfig, XLMRobertaModel

    size = _tokenizer(folder, "<s>", "</s>", "<pad>", 62)
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=size, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, pad_token_id=0, type_vocab_size=1,
    )  # fmt: skip
    XLMRobertaModel(config).save_pretrained(folder)
    return folder


def tiny_t5gemma(folder: Path) -> Path:
    """T5Gemma with both halves, as published."""
    from transformers import T5GemmaConfig, T5GemmaModel

    size = _tokenizer(folder, "<s>", None, "<pad>", 512)
    torch.manual_seed(0)
    half = {
        "vocab_size": size, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0,
        "bos_token_id": 1, "layer_types": ["full_attention", "full_attention"],
    }  # fmt: skip
    T5GemmaModel(T5GemmaConfig(encoder=half, decoder=half, vocab_size=size)).save_pretrained(folder)
    return folder


def tiny_dinov2(folder: Path, image_size: int = 224) -> Path:
    """Dinov2Model of width 16; its positions are learned for pictures of `image_size`."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2,
        image_size=image_size, patch_size=14, initializer_range=0.3,
    )  # fmt: skip
    Dinov2Model(config).save_pretrained(folder)
    return folder
