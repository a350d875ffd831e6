"""A model that says what is to be seen in a picture: any image-text-to-text one of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from limner.device import name_of
from limner.errors import LimnerError
from limner.pretrained.hub import find_folder, read_config, read_pretrained, transformers_for

KEY = "--model"
ASKED = "Describe this picture in one sentence."
"""Of models that are talked to, where no prompt is given."""
TASKS = {"florence2": "<CAPTION>"}
"""Words that are a task by themselves, for models that do nothing without one."""
BEGINS_WITH = ("blip", "git")
"""Models whose caption begins with the words of the prompt; others answer it."""
CHAT_TEMPLATES = ("*.jinja",)


class Captioner:
    """A captioning model, loaded from a folder or the Hub; weights from safetensors only.

    Four ways to ask are known: an encoder and a decoder without a prompt (ViT-GPT2), a caption that
    is begun (BLIP, GIT), a task in words (Florence-2), and a conversation (any model whose
    processor has a chat template). Others are asked like BLIP-2: with the prompt, or with nothing.

    Raises:
        LimnerError: it cannot be had, is no such model, or has weights that are pickles.
    """

    def __init__(
        self, name: str, device: torch.device, dtype: torch.dtype, prompt: str | None = None
    ) -> None:
        transformers = transformers_for(KEY)
        folder = find_folder(name, KEY, also=CHAT_TEMPLATES)
        _require_safetensors(folder)
        self.kind = str(read_config(folder).get("model_type", ""))
        self.device, self.dtype = device, dtype
        self.processor, self.tokenizer = self._processors(transformers, folder)
        chats = getattr(self.processor, "chat_template", None) is not None
        if self.kind == "vision-encoder-decoder" and prompt:
            raise LimnerError(f"--prompt: not supported by {name}")
        self.prompt = prompt or TASKS.get(self.kind) or (ASKED if chats else None)
        self.text = self._conversation() if chats else self.prompt
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = read_pretrained(
            transformers.AutoModelForImageTextToText, folder, KEY, use_safetensors=True, dtype=dtype
        )
        if self.model.generation_config.pad_token_id is None:  # BLIP takes it from nowhere else
            self.model.generation_config.pad_token_id = self.tokenizer.pad_token_id
        self.model.eval().to(device)
        self.name = f"{name} ({self.kind}, {name_of(dtype)} on {device.type})"

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], max_new_tokens: int) -> list[str]:
        """A caption for each RGB picture, "" where the model says nothing; always the same."""
        inputs = self._inputs(list(images)).to(self.device, self.dtype)
        # Beams and penalties are as the model's authors set them; only chance is taken out.
        said = self.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        asked = inputs.get("input_ids")
        if asked is not None and self.kind not in BEGINS_WITH:
            length = asked.shape[1]
            if said.shape[1] >= length and torch.equal(said[:, :length], asked):
                said = said[:, length:]
        texts = self.tokenizer.batch_decode(said, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def _processors(self, transformers: Any, folder: Path) -> tuple[Any, Any]:
        if self.kind == "vision-encoder-decoder":
            pictures = read_pretrained(transformers.AutoImageProcessor, folder, KEY)
            return pictures, read_pretrained(transformers.AutoTokenizer, folder, KEY)
        processor = read_pretrained(transformers.AutoProcessor, folder, KEY)
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None or not hasattr(processor, "image_processor"):
            raise LimnerError(
                f"{KEY}: {folder} has no processor for pictures and text, so it is not a "
                "captioning model"
            )
        # What is said goes on at the right end, so that what is shorter is filled up on the left.
        tokenizer.padding_side = "left"
        return processor, tokenizer

    def _conversation(self) -> str:
        content = [{"type": "image"}, {"type": "text", "text": self.prompt}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def _inputs(self, images: list[Image.Image]) -> Any:
        options: dict[str, Any] = {"return_tensors": "pt"}
        if self.kind == "vision-encoder-decoder" or self.text is None:
            processor = getattr(self.processor, "image_processor", self.processor)
            return processor(images=images, **options)
        if self.kind == "git":  # its end mark after the prompt would end the caption
            inputs = self.processor.image_processor(images=images, **options)
            begun = [self.tokenizer.cls_token_id]
            begun += self.tokenizer(self.text, add_special_tokens=False).input_ids
            inputs["input_ids"] = torch.tensor([begun] * len(images))
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            return inputs
        texts = [self.text] * len(images)
        nested = [[image] for image in images]  # each text has its own
        return self.processor(images=nested, text=texts, padding=True, **options)


def _require_safetensors(folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        raise LimnerError(
            f"{KEY}: {folder} has no *.safetensors, and other weights are not loaded because they "
            "can run code. Use a model with *.safetensors, or ask its owner to save it with "
            "save_pretrained of a current version of transformers."
        )
