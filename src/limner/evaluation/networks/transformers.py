"""Vision transformers as feature extractors: DINOv2 for FD-DINOv2, CLIP for CMMD and CLIP score."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from limner.errors import LimnerError
from limner.evaluation.networks.networks import FeatureNetwork, Metric, file_sha256, full_float32
from limner.memory import in_parts_that_fit
from limner.pretrained.hub import (
    WEIGHTS,
    find_folder,
    read_config,
    read_pretrained,
    transformers_for,
    weight_files,
)

DINOV2_NAME = "facebook/dinov2-large"
"""The network of FD-DINOv2 (Stein et al. 2023)."""
CMMD_NAME = "openai/clip-vit-large-patch14-336"
"""The network of CMMD (Jayasumana et al. 2024)."""
CLIP_SCORE_NAME = "openai/clip-vit-large-patch14"
KNOWN = {  # hashes of the weights on the Hub
    "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23": "DINOv2 ViT-L/14",
    "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801": "CLIP ViT-L/14-336",
    "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb": "CLIP ViT-L/14",
}
DINOV2_SIDE = 224
POSITION_OFFSET = 0.1
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class DINOv2(FeatureNetwork):
    """DINOv2 (Oquab et al. 2023, arXiv 2304.07193) as FD-DINOv2 uses it (Stein et al. 2023, arXiv
    2306.04675): the class token after the last normalisation.

    Args:
        name: a local folder written by save_pretrained, or a Hub id.
        key: name of the setting, for messages.

    Raises:
        LimnerError: the model is not available, or is a different network.
    """

    published: ClassVar[dict[Metric, str]] = {
        "Frechet distance": "FD-DINOv2",
        "kernel distance": "KD-DINOv2",
    }

    def __init__(self, name: str, key: str, device: torch.device | str = "cpu") -> None:
        folder = find_folder(name, key)
        config = _config(folder, "dinov2", key)
        model = _load(transformers_for(key).Dinov2Model, folder, key)
        patch, width = int(model.config.patch_size), int(model.config.hidden_size)
        _place_positions(model, DINOV2_SIDE // patch)
        layers = int(model.config.num_hidden_layers)
        sha256, known = _weights(folder)
        super().__init__(
            model,
            known or f"DINOv2 of width {width}, {layers} layers, patch {patch}",
            sha256,
            known is not None,
            _preparation(DINOV2_SIDE, "ImageNet's"),
            width,
            torch.device(device),
            config,
        )

    def _prepare(self, images: Tensor) -> Tensor:
        return _prepared(images, DINOV2_SIDE, IMAGENET_MEAN, IMAGENET_STD).to(self.device)

    def _compute(self, prepared: Tensor) -> Tensor:
        return self.model(pixel_values=prepared).last_hidden_state[:, 0]


class CLIP(FeatureNetwork):
    """CLIP (Radford et al. 2021, arXiv 2103.00020): projected embeddings of images and texts,
    normalised to unit length.

    Args:
        name: a local folder written by save_pretrained, or a Hub id.
        key: name of the setting, for messages.

    Raises:
        LimnerError: the model is not available, or is a different network.
    """

    metrics: ClassVar[tuple[Metric, ...]] = ("CMMD", "CLIP score")

    def __init__(self, name: str, key: str, device: torch.device | str = "cpu") -> None:
        self.folder, self.key = find_folder(name, key), key
        config = _config(self.folder, "clip", key)
        transformers = transformers_for(key)
        self.settings = read_pretrained(transformers.CLIPConfig, self.folder, key)
        for half in (self.settings.vision_config, self.settings.text_config):
            half.projection_dim = self.settings.projection_dim  # that of the whole model counts
        family = transformers.CLIPVisionModelWithProjection
        model = _load(family, self.folder, key, self.settings.vision_config)
        self.side = int(model.config.image_size)
        sha256, known = _weights(self.folder)
        super().__init__(
            model,
            known
            or f"CLIP of width {model.config.hidden_size}, {model.config.num_hidden_layers} "
            f"layers, patch {model.config.patch_size}, {self.side} pixels",
            sha256,
            known is not None,
            _preparation(self.side, "CLIP's"),
            int(model.config.projection_dim),
            torch.device(device),
            config,
        )
        self.tokenizer: Any = None
        self.text_model: Any = None

    def label(self, metric: Metric) -> str:
        if metric == "CMMD" and self.verified and self.name == "CLIP ViT-L/14-336":
            return "CMMD"
        return super().label(metric)

    def text_features(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Embeddings of texts, truncated to CLIP's maximum length: float32 [N, width] on the CPU.
        Raises LimnerError if the folder contains no text model."""
        self._open_text()

        def all_of_them(size: int) -> Tensor:
            return torch.cat([self._read(texts[i : i + size]) for i in range(0, len(texts), size)])

        if not len(texts):
            return torch.empty(0, self.width)
        with torch.no_grad(), full_float32(self.device):
            return in_parts_that_fit(batch_size, all_of_them)

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """Indices of the texts that exceed CLIP's maximum length and are truncated."""
        self._open_text()
        read = self.tokenizer(list(texts), verbose=False)["input_ids"] if len(texts) else []
        return [i for i, ids in enumerate(read) if len(ids) > self._most_tokens()]

    def _prepare(self, images: Tensor) -> Tensor:
        return _prepared(images, self.side, CLIP_MEAN, CLIP_STD).to(self.device)

    def _compute(self, prepared: Tensor) -> Tensor:
        return F.normalize(self.model(pixel_values=prepared).image_embeds, dim=1)

    def _open_text(self) -> None:
        if self.text_model is None:
            transformers = transformers_for(self.key)
            self.tokenizer = read_pretrained(transformers.AutoTokenizer, self.folder, self.key)
            family = transformers.CLIPTextModelWithProjection
            model = _load(family, self.folder, self.key, self.settings.text_config)
            self.text_model = model.to(self.device).eval().requires_grad_(False)

    def _most_tokens(self) -> int:
        return int(self.text_model.config.max_position_embeddings)

    def _read(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self._most_tokens(),
            return_tensors="pt",
        ).to(self.device)
        found = self.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        return F.normalize(found.text_embeds, dim=1).float().cpu()


def _preparation(side: int, whose: str) -> str:
    return (
        f"resized to {side} x {side} (bicubic, antialiased, Pillow), normalised by {whose} mean "
        "and deviation"
    )


def _prepared(images: Tensor, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, side, side], resized with Pillow, as in published code:
    filters of the same name in other libraries differ."""
    size = (side, side)
    resized = np.stack(
        [
            np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
            for image in images.cpu().numpy()
        ]
    )
    x = torch.from_numpy(resized).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def _place_positions(model: Any, side: int) -> None:
    """Interpolate the position embeddings, trained for 37 x 37 patches, to side x side.

    The original code adds 0.1 to the size and interpolates by the resulting scale factor;
    transformers interpolates by size, which gives slightly different features.
    """
    positions = model.embeddings.position_embeddings.detach()
    first, others = positions[:, :1], positions[:, 1:]
    learned = round(others.shape[1] ** 0.5)
    if learned == side:
        return
    grid = others.reshape(1, learned, learned, -1).permute(0, 3, 1, 2)
    scale = (side + POSITION_OFFSET) / learned
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    placed = torch.cat([first, grid.permute(0, 2, 3, 1).reshape(1, side**2, -1)], dim=1)
    model.embeddings.position_embeddings = nn.Parameter(placed, requires_grad=False)


def _config(folder: Path, kind: str, key: str) -> str:
    """The hash of config.json, whose model type must be `kind`."""
    found = read_config(folder).get("model_type")
    if found != kind:
        raise LimnerError(f"{key}: {folder} contains a model of type {found!r}; expected {kind!r}")
    return file_sha256(folder / "config.json")


def _load(family: Any, folder: Path, key: str, config: Any = None) -> Any:
    options = {} if config is None else {"config": config}
    model, info = read_pretrained(
        family, folder, key, dtype=torch.float32, output_loading_info=True, **options
    )
    if missing := sorted(info["missing_keys"]):
        raise LimnerError(
            f"{key}: {folder} lacks {len(missing)} weights of a {family.__name__}, such as "
            f"{missing[0]}; it is incomplete, or a different kind of model"
        )
    return model


def _weights(folder: Path) -> tuple[str, str | None]:
    """The hash of the weights, and their name if they are known.

    For several files it is the hash of their names and hashes, in order.
    """
    files = [path for path in weight_files(folder) if path.suffix in WEIGHTS]
    usual = [f for f in files if f.name in ("model.safetensors", "pytorch_model.bin")]
    files = usual or files
    if len(files) == 1:
        found = file_sha256(files[0])
    else:
        lines = "".join(f"{file_sha256(path)}  {path.name}\n" for path in files)
        found = hashlib.sha256(lines.encode("utf-8")).hexdigest()
    return found, KNOWN.get(found)
