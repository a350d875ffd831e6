"""Tiny captioning models with random weights, as save_pretrained writes them: they speak nonsense
of 24 words, and never stop by themselves before they are cut off or say their end mark."""

from pathlib import Path
from typing import Any

import torch

WORDS = [
    *("a", "photo", "of", "red", "green", "blue", "cat", "dog", "house", "tree", "on", "under"),
    *("the", "big", "small", "two", "runs", "sleeps", "sky", "sea", "with", "and", "old", "new"),
]
SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<unk>"]
VOCABULARY = len(SPECIAL) + len(WORDS)
CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} dog{% endif %}"
)
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "initializer_range": 0.6}  # fmt: skip
SIGHT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
         "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
         "initializer_range": 0.6}  # fmt: skip
SIZE = {"height": 32, "width": 32}


def tokenizer(image_token: bool = True) -> Any:
    """Words to ids, between <s> and </s>."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", bos_token="<s>",
        eos_token="</s>", cls_token="<s>", sep_token="</s>", model_max_length=512,
        extra_special_tokens={"image_token": "<image>"} if image_token else {},
    )  # fmt: skip


def tiny_blip(folder: Path) -> Path:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    torch.manual_seed(0)
    text = {**TEXT, "sep_token_id": 2, "encoder_hidden_size": 16, "max_position_embeddings": 64}
    config = BlipConfig(text_config=text, vision_config=SIGHT, projection_dim=16)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size=SIZE), tokenizer()).save_pretrained(folder)
    return folder


def tiny_git(folder: Path) -> Path:
    from transformers import GitConfig, GitForCausalLM, GitProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(1)
    config = GitConfig(vision_config=SIGHT, max_position_embeddings=64, **TEXT)
    GitForCausalLM(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIZE)
    GitProcessor(images, tokenizer()).save_pretrained(folder)
    return folder


def tiny_vit_gpt2(folder: Path) -> Path:
    """VisionEncoderDecoderModel: no processor, but a tokenizer and an image processor."""
    from transformers import (
        GPT2Config,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
    )
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(2)
    decoder = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, initializer_range=0.6,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**SIGHT), decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    VisionEncoderDecoderModel(config).save_pretrained(folder)
    ViTImageProcessorPil(size=SIZE).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tiny_llava(folder: Path) -> Path:
    """A chat model: pictures stand in its conversation."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(3)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**{**SIGHT, "projection_dim": 16}),
        text_config=LlamaConfig(**TEXT),
        image_token_index=3,
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIZE)
    LlavaProcessor(
        images, tokenizer(), patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=CHAT, image_token="<image>",
    ).save_pretrained(folder)  # fmt: skip
    return folder


def tiny_blip2(folder: Path) -> Path:
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        OPTConfig,
    )
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    torch.manual_seed(4)
    text = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=16, ffn_dim=32, num_hidden_layers=1, pad_token_id=0,
        num_attention_heads=2, bos_token_id=1, eos_token_id=2, max_position_embeddings=64,
        word_embed_proj_dim=16, init_std=0.6,
    )  # fmt: skip
    former = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
              "num_attention_heads": 2, "encoder_hidden_size": 16,
              "initializer_range": 0.6}  # fmt: skip
    config = Blip2Config(
        vision_config=SIGHT, qformer_config=former, text_config=text.to_dict(),
        num_query_tokens=4, image_token_index=3,
    )  # fmt: skip
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    Blip2Processor(
        BlipImageProcessorPil(size=SIZE), tokenizer(image_token=False), num_query_tokens=4
    ).save_pretrained(folder)
    return folder
