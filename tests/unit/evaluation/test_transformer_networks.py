"""DINOv2 and CLIP as feature networks: against transformers called directly, on tiny models."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pretrained
import pytest
import safetensors.torch
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from limner.errors import LimnerError
from limner.evaluation.networks import transformers as networks
from limner.evaluation.networks.networks import file_sha256
from limner.evaluation.networks.transformers import CLIP, DINOv2
from limner.metrics.scores import clip_score

KEY = "the network"
TEXTS = ["a red apple", "", "a cat on a chair", "红苹果"]


def drawn(count: int = 3, side: int = 40) -> Tensor:
    """Pictures with edges, which filters treat differently; uint8 [N, S, S, 3]."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.integers(0, 256, (count, 3, 5, 5))).float()
    fine = torch.from_numpy(random.integers(-20, 20, (count, 3, side, side)))
    x = (F.interpolate(coarse, size=side) + fine).clamp(0, 255)
    return x.permute(0, 2, 3, 1).to(torch.uint8)


def prepared(images: Tensor, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    rows = []
    for image in images.numpy():
        small = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        rows.append((np.asarray(small) / 255 - np.array(mean)) / np.array(std))
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float()


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained.tiny_dinov2(tmp_path_factory.mktemp("dinov2") / "tiny")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained.tiny_clip(tmp_path_factory.mktemp("clip") / "tiny", whole=True)


def test_dinov2_gives_its_class_token_after_the_last_norm(dinov2: Path) -> None:
    images = drawn()
    model = transformers.Dinov2Model.from_pretrained(dinov2).eval()
    x = prepared(images, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        output = model(pixel_values=x)
    found = DINOv2(str(dinov2), KEY).features(images)
    assert found.shape == (3, 16)
    assert torch.allclose(found, output.pooler_output, atol=1e-5)
    assert torch.allclose(found, output.last_hidden_state[:, 0], atol=1e-5)
    assert (found[0] - found[1]).norm() > 0.1  # it tells pictures apart


def test_dinov2_s_positions_are_scaled_as_the_original_code_does(tmp_path: Path) -> None:
    folder = pretrained.tiny_dinov2(tmp_path / "518", image_size=518)  # as the published ones
    model = transformers.Dinov2Model.from_pretrained(folder).eval()
    ours = DINOv2(str(folder), KEY)
    found = ours.model.embeddings.position_embeddings[0]
    learned = model.embeddings.position_embeddings[0].detach()
    assert found.shape == (1 + 16 * 16, 16)
    assert torch.equal(found[0], learned[0])
    # Place i lies at (i + 0.5) * 37 / 16.1 - 0.5 among the learned ones: cubic, by its definition.
    grid = learned[1:].reshape(37, 37, 16)

    def weight(distance: float, a: float = -0.75) -> float:
        d = abs(distance)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    for row, column in ((0, 0), (3, 9), (15, 15), (15, 2)):
        expected = torch.zeros(16)
        y, x = ((i + 0.5) * 37 / 16.1 - 0.5 for i in (row, column))
        for j in range(math.floor(y) - 1, math.floor(y) + 3):
            for i in range(math.floor(x) - 1, math.floor(x) + 3):
                value = grid[min(max(j, 0), 36), min(max(i, 0), 36)]
                expected += weight(y - j) * weight(x - i) * value
        assert torch.allclose(found[1 + 16 * row + column], expected, atol=1e-4)
    # The library's own way is near, and not the same.
    x = prepared(drawn(), 224, networks.IMAGENET_MEAN, networks.IMAGENET_STD)
    with torch.no_grad():
        library = model(pixel_values=x).pooler_output
    features = ours.features(drawn())
    assert not torch.allclose(features, library, atol=1e-5)
    assert (features - library).norm() < 0.2 * library.norm()


def test_clip_s_embeddings_are_those_of_the_whole_model(clip: Path) -> None:
    images = drawn()
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip)
    x = prepared(images, 8, networks.CLIP_MEAN, networks.CLIP_STD)
    with torch.no_grad():
        output = model(pixel_values=x, **tokenizer(TEXTS, padding=True, return_tensors="pt"))
    network = CLIP(str(clip), KEY)
    seen, read = network.features(images), network.text_features(TEXTS)
    assert seen.shape == (3, 8)
    assert read.shape == (4, 8)
    assert torch.allclose(seen, output.image_embeds, atol=1e-5)  # the model brings them to length 1
    assert torch.allclose(read, output.text_embeds, atol=1e-5)
    cosines = output.logits_per_image / model.logit_scale.detach().exp()
    expected = (100 * cosines.diagonal()).clamp(min=0).mean()
    assert clip_score(seen, read[:3]).value == pytest.approx(float(expected), abs=1e-3)
    assert network.text_features([]).shape == (0, 8)
    one_by_one = torch.cat([network.text_features([text]) for text in TEXTS])
    assert torch.allclose(read, one_by_one, atol=1e-5)


def test_clip_s_preparation_is_that_of_its_own_processor(clip: Path) -> None:
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
    )
    images = drawn(2)
    expected = processor([Image.fromarray(p) for p in images.numpy()], return_tensors="pt")
    found = CLIP(str(clip), KEY)._prepare(images)
    assert torch.allclose(found, torch.as_tensor(expected["pixel_values"]), atol=1e-6)


def test_texts_that_clip_does_not_read_to_their_end_are_named(clip: Path) -> None:
    network = CLIP(str(clip), KEY)
    texts = ["short", "x" * 23, "x" * 100]  # 24 tokens are read, two of them special
    assert network.too_long(texts) == [1, 2]
    assert network.too_long([]) == []
    assert torch.allclose(network.text_features(texts)[2], network.text_features(["x" * 22])[0])


def test_what_distances_are_called_depends_on_the_weights(
    clip: Path, dinov2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dino, seer = DINOv2(str(dinov2), KEY), CLIP(str(clip), KEY)
    hashes = [file_sha256(folder / "model.safetensors") for folder in (dinov2, clip)]
    assert [dino.sha256, seer.sha256] == hashes
    assert dino.label("Frechet distance") == (
        "Frechet distance (DINOv2 of width 16, 2 layers, patch 14) "
        f"(unverified weights {hashes[0][:12]})"
    )
    assert "unverified" in seer.label("CMMD")

    known = {hashes[0]: "DINOv2 ViT-L/14", hashes[1]: "CLIP ViT-L/14"}
    monkeypatch.setattr(networks, "KNOWN", known)
    assert DINOv2(str(dinov2), KEY).label("Frechet distance") == "FD-DINOv2"
    assert CLIP(str(clip), KEY).label("CLIP score") == "CLIP score (CLIP ViT-L/14)"
    assert CLIP(str(clip), KEY).label("CMMD") == "CMMD (CLIP ViT-L/14)"  # defined on another
    known[hashes[1]] = "CLIP ViT-L/14-336"
    assert CLIP(str(clip), KEY).label("CMMD") == "CMMD"


def test_another_configuration_is_another_network(clip: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in clip.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert CLIP(str(copy), KEY).identity() == CLIP(str(clip), KEY).identity()
    text = (copy / "config.json").read_text("utf-8")
    assert "quick_gelu" in text
    (copy / "config.json").write_text(text.replace("quick_gelu", "gelu"), "utf-8")
    assert CLIP(str(copy), KEY).identity() != CLIP(str(clip), KEY).identity()


def test_weights_in_several_files_are_hashed_together(dinov2: Path, tmp_path: Path) -> None:
    whole = transformers.Dinov2Model.from_pretrained(dinov2)
    whole.save_pretrained(tmp_path / "parts", max_shard_size="5KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    parts, one = DINOv2(str(tmp_path / "parts"), KEY), DINOv2(str(dinov2), KEY)
    assert torch.equal(parts.features(drawn()), one.features(drawn()))
    assert parts.sha256 != one.sha256
    assert len(parts.sha256) == 64
    assert not parts.verified


@pytest.mark.parametrize("family", [CLIP, DINOv2])
def test_other_networks_are_refused_in_words(
    family: Any, clip: Path, dinov2: Path, tmp_path: Path
) -> None:
    other, kind = (clip, "clip") if family is DINOv2 else (dinov2, "dinov2")
    with pytest.raises(LimnerError, match=f"{KEY}: .* contains a model of type '{kind}'"):
        family(str(other), KEY)
    with pytest.raises(LimnerError, match=f"{KEY}: .*nothing exists at"):
        family(str(tmp_path / "no"), KEY)


def test_weights_in_the_older_format_are_the_same(clip: Path, tmp_path: Path) -> None:
    """The published network of CMMD is pytorch_model.bin, with numbers of places in it."""
    for path in clip.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = safetensors.torch.load_file(clip / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    older, newer = CLIP(str(tmp_path), KEY), CLIP(str(clip), KEY)
    assert torch.allclose(older.features(drawn()), newer.features(drawn()), atol=1e-6)
    assert torch.allclose(older.text_features(TEXTS), newer.text_features(TEXTS), atol=1e-6)
    assert older.sha256 == file_sha256(tmp_path / "pytorch_model.bin")


def test_a_part_without_its_other_half_says_so(tmp_path: Path, clip: Path) -> None:
    for path in clip.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = safetensors.torch.load_file(clip / "model.safetensors")
    seeing = {name: value for name, value in tensors.items() if name.startswith("vis")}
    safetensors.torch.save_file(seeing, tmp_path / "model.safetensors", {"format": "pt"})
    network = CLIP(str(tmp_path), KEY)
    assert torch.equal(network.features(drawn()), CLIP(str(clip), KEY).features(drawn()))
    with pytest.raises(LimnerError, match=f"{KEY}: .* lacks .* CLIPTextModelWithProjection"):
        network.text_features(["a"])
