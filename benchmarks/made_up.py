"""Full-size pretrained components with random weights, and random pictures, for offline
benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


def sd15_autoencoder_folder(folder: Path) -> Path:
    """An AutoencoderKL of Stable Diffusion 1.5's shape: 84M parameters, 4 channels, 8 to 1."""
    from diffusers import AutoencoderKL

    if not folder.exists():
        torch.manual_seed(0)
        model: Any = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
            scaling_factor=0.18215,
        )
        model.save_pretrained(folder)
    return folder


def clip_text_folder(folder: Path) -> Path:
    """A CLIPTextModel of ViT-B/32's shape: 63M parameters, 77 tokens, width 512."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    if folder.exists():
        return folder
    torch.manual_seed(0)
    # Bytes are all the words there are, so that a caption of this benchmark has about as many
    # tokens as a longer one of a real vocabulary.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)}
    vocabulary |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 49406), ("<|endoftext|>", 49407)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=77,
    ).save_pretrained(folder)
    config = CLIPTextConfig(bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)
    CLIPTextModel(config).save_pretrained(folder)
    return folder


def jpeg_folder(folder: Path, count: int, side: int) -> Path:
    """Pictures of smooth noise with captions, in the layout of metadata.json."""
    if folder.exists():
        return folder
    (folder / "images").mkdir(parents=True)
    rows, random = [], np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        fine = random.normal(0, 6, (side, side, 3))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)) + fine
        name = f"images/{number:06d}.jpg"
        Image.fromarray(smooth.clip(0, 255).astype(np.uint8)).save(folder / name, quality=90)
        rows.append({"image": name, "text": f"a picture of smooth noise, number {number}"})
    (folder / "metadata.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder
