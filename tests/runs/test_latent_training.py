"""Training in latents and on pretrained embeddings: computed once, and then out of the way."""

import errno
import gc
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pretrained
import pytest
import torch
from PIL import Image
from runs import messages, trained

from limner.checkpoint.folder import Checkpoint
from limner.cli import main
from limner.config import Config
from limner.data.dataset import ImageError
from limner.data.images import to_tensor
from limner.data.open import open_data
from limner.data.precomputed.sources import StoredCaptions, StoredLatents
from limner.errors import LimnerError
from limner.files import fingerprints
from limner.inference.generator import ImageGenerator
from limner.pretrained.autoencoder import PretrainedAutoencoder
from limner.pretrained.components import open_parts
from limner.pretrained.text_encoder import PretrainedTextEncoder
from limner.training.batches import load_batches
from limner.training.precompute import stored_latents
from limner.training.trainer import Trainer

Build = Callable[..., Config]
CPU, F32 = torch.device("cpu"), torch.float32


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("parts")
    makers: dict[str, Any] = {
        "vae": pretrained.tiny_autoencoder,
        "16": pretrained.tiny_16_channels,
        "dc": pretrained.tiny_dc,
        "clip": pretrained.tiny_clip,
        "t5": pretrained.tiny_t5,
        "qwen": pretrained.tiny_qwen,
    }
    made = {name: make(top / name) for name, make in makers.items()}
    gc.freeze()  # the libraries that have just been imported
    return made


@pytest.fixture
def build(tiny_config: Build, parts: dict[str, Path], tmp_path: Path) -> Build:
    """A tiny configuration in the latents of `vae` with the captions read by `text`."""

    def build(*overrides: str, vae: str | None = "vae", text: str | None = "clip") -> Config:
        named = [f"vae.pretrained_model_name='{parts[vae]}'"] if vae else []
        named += [f"text_encoder.pretrained_model_name='{parts[text]}'"] if text else []
        named += ["text_encoder.max_length=null"] if text else []
        cache = f"cache.folder='{tmp_path / 'cache'}'"
        return tiny_config("model.patch_size=2", *named, cache, *overrides)

    return build


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)


def pictures_folder(folder: Path, count: int = 12) -> Path:
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:02d}.png")
    lines = [f'{{"file_name": "images/{n:02d}.png", "text": "noise {n}"}}' for n in range(count)]
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


def own(folder: Path) -> list[str]:
    return ["data.dataset_name=null", "data.num_samples=null", f"data.dataset_path='{folder}'"]


# From end to end


@pytest.mark.parametrize(
    ("vae", "text"),
    [("vae", "clip"), ("16", "t5"), ("dc", "qwen"), ("vae", None), (None, "clip")],
)
@pytest.mark.parametrize("architecture", ["modern", "dit"])
def test_it_trains_and_draws(
    vae: str | None, text: str | None, architecture: str, build: Build
) -> None:
    config = build(
        f"model.architecture={architecture}", "training.preview_steps=6", vae=vae, text=text
    )
    trainer = trained(config)
    assert trainer.state.step == 6
    assert (trainer.folder / "previews" / "step-000006.png").is_file()
    generator = ImageGenerator(trainer.folder)
    assert generator.generate("a red circle").size == (16, 16)
    assert generator.generate("", height=24, width=16).size == (16, 24)
    channels = {"vae": 4, "16": 16, "dc": 8, None: 3}[vae]
    assert generator.config.model.in_channels == channels
    batch = next(load_batches(trainer.run))
    side = 16 // (4 if vae else 1)
    assert batch.image.shape == batch.noise.shape == (4, channels, side, side)


def test_a_resumed_run_is_the_same_run(build: Build, tmp_path: Path) -> None:
    more = ["training.num_workers=2", "data.horizontal_flip=0.5", "model.dropout=0.1"]
    whole = trained(build(*more, f"training.output_dir='{tmp_path / 'whole'}'")).folder
    config = build(*more, f"training.output_dir='{tmp_path / 'again'}'")
    Trainer(config, resume=whole / "checkpoint-3").train()
    once, again = weights(whole / "checkpoint-6"), weights(tmp_path / "again" / "checkpoint-6")
    assert once.keys() == again.keys()
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_the_checkpoint_draws_where_the_parts_were_moved_and_refuses_others(
    build: Build, parts: dict[str, Path], tmp_path: Path
) -> None:
    vae = pretrained.tiny_autoencoder(tmp_path / "here")
    config = build(f"vae.pretrained_model_name='{vae}'")
    folder = trained(config).folder
    before = np.asarray(ImageGenerator(folder).generate("a red circle", seed=3))
    vae.rename(tmp_path / "there")
    with pytest.raises(LimnerError, match=r"vae\.pretrained_model_name: .* is not a folder"):
        ImageGenerator(folder)
    moved = ImageGenerator(folder, vae=tmp_path / "there")
    assert np.array_equal(np.asarray(moved.generate("a red circle", seed=3)), before)
    output = tmp_path / "moved.png"
    assert main(["generate", str(folder), "a red circle", "--seed", "3", "--vae",
                 str(tmp_path / "there"), "--output", str(output)]) == 0  # fmt: skip
    assert np.array_equal(np.asarray(Image.open(output)), before)
    with pytest.raises(
        LimnerError, match=r"contains other weights .* than those the checkpoint was trained"
    ):
        ImageGenerator(folder, vae=parts["16"])
    with pytest.raises(LimnerError, match=r"text_encoder.* contains other weights"):
        ImageGenerator(folder, vae=tmp_path / "there", text_encoder=parts["t5"])


def test_a_run_is_not_resumed_with_another_autoencoder(
    build: Build, parts: dict[str, Path], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    other = pretrained.tiny_autoencoder(tmp_path / "other", scaling_factor=0.5)
    folder = trained(build()).folder
    with pytest.raises(LimnerError, match=r"vae\.fingerprint: .* in the checkpoint"):
        Trainer(build(f"vae.pretrained_model_name='{other}'"), resume=folder / "checkpoint-3")
    with pytest.raises(LimnerError, match=r"text_encoder\.pretrained_model_name: .* None in the"):
        Trainer(build("text_encoder.max_length=24", text=None), resume=folder / "checkpoint-3")


def test_the_checkpoint_says_what_it_needs_and_holds_no_tokenizer(build: Build) -> None:
    opened = Checkpoint.open(trained(build()).folder)
    assert opened.tokenizer is None
    assert re.fullmatch("[0-9a-f]{32}", str(opened.config.vae.fingerprint))
    assert re.fullmatch("[0-9a-f]{32}", str(opened.config.text_encoder.fingerprint))
    assert opened.config.text_encoder.max_length == 24


# Each thing once


def test_a_second_run_computes_nothing(
    build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained(build())
    assert "24 pictures to encode once" in capsys.readouterr().out
    for part in (PretrainedAutoencoder, PretrainedTextEncoder):
        monkeypatch.setattr(part, "load", lambda *_: pytest.fail("weights were loaded"))
    again = Trainer(build(f"training.output_dir='{tmp_path / 'second'}'", "training.seed=5"))
    assert isinstance(again.run.inputs.trained, StoredLatents)
    assert isinstance(again.run.inputs.words, StoredCaptions)
    next(load_batches(again.run))
    assert capsys.readouterr().out == ""


def test_when_all_is_computed_the_encoders_leave_memory(build: Build) -> None:
    trainer = Trainer(build())
    trainer.run.inputs  # noqa: B018
    assert trainer.run.parts.text_encoder is not None
    assert trainer.run.parts.autoencoder.model is trainer.run.parts.text_encoder.model is None  # type: ignore[union-attr]


def test_precompute_does_what_training_would(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(build().to_yaml(), "utf-8")
    assert main(["precompute", str(path)]) == 0
    assert "24 pictures to encode once" in capsys.readouterr().out
    Trainer(build()).run.inputs  # noqa: B018
    assert capsys.readouterr().out == ""
    assert main(["precompute", "vae.pretrained_model_name=null", "data.dataset_name=shapes"]) == 0
    assert "nothing to precompute" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("dtype", "near"), [("float32", 1e-6), ("float16", 2e-3), ("bfloat16", 2e-2)]
)
def test_a_stored_latent_decodes_to_the_picture_of_the_direct_path(
    dtype: str, near: float, build: Build
) -> None:
    trainer = Trainer(build(f"cache.dtype={dtype}"))
    space = PretrainedAutoencoder(trainer.config.vae)
    space.load(CPU, F32)
    for position in (0, 5):
        pixels = to_tensor(trainer.data.trained.load(position))[None]
        direct = space.encode(pixels)
        stored = trainer.run.inputs.trained.tensor(position)[None]
        assert stored.dtype == torch.float32
        assert (stored - direct).abs().max() <= near * direct.abs().max()
        decoded, expected = space.decode(stored), space.decode(direct)
        assert (decoded - expected).abs().max() <= 4 * near * expected.abs().max()


def test_stored_captions_are_what_the_encoder_says(build: Build, parts: dict[str, Path]) -> None:
    trainer = Trainer(build("cache.dtype=float32"))
    reader = PretrainedTextEncoder(trainer.config.text_encoder)
    reader.load(CPU, F32)
    for caption in (trainer.data.trained.rows[3].captions[0], "", "a red circle"):
        found, expected = trainer.run.inputs.words.encode([caption]), reader.encode([caption])
        length = expected.states.shape[1]
        assert torch.allclose(found.states[:, :length], expected.states, atol=1e-5)  # type: ignore[union-attr]
        assert torch.allclose(found.vector, expected.vector, atol=1e-5)  # type: ignore[union-attr]
        assert int(found.mask.sum()) == length  # type: ignore[union-attr]


def test_a_mirrored_picture_has_latents_of_its_own(build: Build) -> None:
    trainer = Trainer(build("data.horizontal_flip=1", "cache.dtype=float32"))
    space = PretrainedAutoencoder(trainer.config.vae)
    space.load(CPU, F32)
    pixels = to_tensor(trainer.data.trained.load(2))[None]
    mirrored = trainer.run.inputs.trained.tensor(2, flipped=True)
    assert torch.allclose(mirrored, space.encode(pixels.flip(-1))[0], atol=1e-5)
    assert not torch.allclose(mirrored, space.encode(pixels)[0].flip(-1), atol=1e-3)


@pytest.mark.usefixtures("float16_here")
@pytest.mark.parametrize(
    "change", ["data.image_size=32", "cache.dtype=float32", "other weights", "mixed_precision"]
)
def test_a_cache_that_was_made_otherwise_is_not_used_and_says_why(
    change: str, build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainer(build()).run.inputs  # noqa: B018
    capsys.readouterr()
    override = {
        "other weights": f"vae.pretrained_model_name='{tmp_path / 'other'}'",
        "mixed_precision": "training.mixed_precision=bf16",
    }.get(change, change)
    if change == "other weights":
        pretrained.tiny_autoencoder(tmp_path / "other", scaling_factor=0.3)
    Trainer(build(override)).run.inputs  # noqa: B018
    said = capsys.readouterr().out
    differs = {
        "data.image_size=32": "image_size is 16 in the store and 32 in this run",
        "cache.dtype=float32": "dtype is float16 in the store and float32 in this run",
        "other weights": "autoencoder is ",
        "mixed_precision": "computed_in is float32 in the store and bfloat16 in this run",
    }[change]
    assert "exists but is not used: " in said
    assert differs in said
    assert "24 pictures to encode once" in said


def test_only_pictures_that_are_new_or_changed_are_encoded(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures_folder(tmp_path / "data")
    Trainer(build(*own(folder))).run.inputs  # noqa: B018
    assert "12 pictures to encode once" in capsys.readouterr().out
    Image.new("RGB", (20, 20), "red").save(folder / "images" / "03.png")
    (folder / "images" / "04.png").rename(folder / "images" / "renamed.png")
    text = (folder / "metadata.jsonl").read_text("utf-8").replace("04.png", "renamed.png")
    (folder / "metadata.jsonl").write_text(text, "utf-8")
    Trainer(build(*own(folder))).run.inputs  # noqa: B018
    assert "1 pictures to encode once" in capsys.readouterr().out


def test_a_picture_that_cannot_be_used_is_named_and_moves_no_other(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures_folder(tmp_path / "data")
    good = Trainer(build(*own(folder)))
    expected = {
        row.key: good.run.inputs.trained.tensor(i) for i, row in enumerate(good.data.trained.rows)
    }
    (folder / "images" / "05.png").write_bytes(b"nothing")
    encode = PretrainedAutoencoder.encode

    def poisoned(space: PretrainedAutoencoder, images: torch.Tensor) -> torch.Tensor:
        latents = encode(space, images)
        latents[(images > 0.99).all(dim=(1, 2, 3))] = float("nan")
        return latents

    monkeypatch.setattr(PretrainedAutoencoder, "encode", poisoned)
    Image.new("RGB", (20, 20), "white").save(folder / "images" / "07.png")
    bad = trained(build(*own(folder)))
    assert bad.state.step == 6
    said = next(m for m in messages(bad.folder) if "rows cannot be used" in m)
    assert said.startswith("2 rows cannot be used")
    refused = (bad.folder / "refused.jsonl").read_text("utf-8")
    assert "images/05.png" in refused
    assert re.search(r"images/07\.png.*not finite \(NaN or infinite\)", refused)
    for i, row in enumerate(bad.data.trained.rows):
        if row.key not in ("images/05.png", "images/07.png"):
            assert torch.equal(bad.run.inputs.trained.tensor(i), expected[row.key])


def test_pictures_that_could_not_be_hashed_are_never_each_other(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mirror = pictures_folder(tmp_path / "data"), "data.horizontal_flip=0.5"
    config = build(*own(folder), mirror, text=None)
    unreadable: list[str] = []

    def flaky(path: Any, *args: Any) -> Any:
        if Path(path).name in unreadable:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return open(path, *args)

    monkeypatch.setattr(fingerprints, "open", flaky, raising=False)
    monkeypatch.setattr(fingerprints, "RETRY_AFTER", 0.001)
    for cache, names in (("cache", ["03.png", "05.png"]), ("cache", ["07.png"]), ("other", [])):
        unreadable[:] = names
        data = open_data(config)
        folder_of = {"folder": str(tmp_path / cache)}
        with_cache = config.model_copy(update={"cache": config.cache.model_copy(update=folder_of)})
        space = open_parts(config).autoencoder
        assert isinstance(space, PretrainedAutoencoder)
        sources = stored_latents(open_parts(with_cache).config, data, space, CPU, F32)
        found: dict[str, torch.Tensor] = {}
        for source in sources:
            for i, row in enumerate(source.rows):
                name = Path(row.key).name
                if name in names:
                    with pytest.raises(ImageError, match="its file could not be read"):
                        source.tensor(i, flipped=True)
                    continue
                found[name] = torch.stack([source.tensor(i), source.tensor(i, flipped=True)])
        assert len(found) == 12 - len(names)
        assert {Path(row.key).name for row in data.set.refused} == set(names)
        pairs = itertools.combinations(found.values(), 2)
        assert not any(torch.equal(a, b) for a, b in pairs)


# What does not fit


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["model.in_channels=3"],
            r"model\.in_channels: 3, but the latents of .* have 4; set it to 4",
        ),
        (["data.image_size=20"], r"data\.image_size: 20 is not divisible by 8, .* use 16 or 24"),
        (["model.out_channels=8"], r"model\.out_channels: 8 must equal model\.in_channels 4"),
    ],
)
def test_what_does_not_fit_the_autoencoder_is_named(
    settings: list[str], said: str, build: Build
) -> None:
    with pytest.raises(LimnerError, match=said):
        open_parts(build(*settings))


def test_patches_are_chosen_from_the_latents(build: Build) -> None:
    config = open_parts(build("data.image_size=256", "model.patch_size=null")).config
    assert config.model.patch_size == 4  # 64 latents in 16 patches
    assert config.model.in_channels == config.model.out_channels == 4


# Memory


def test_out_of_memory_encodes_and_previews_in_smaller_pieces(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, decode, sizes = PretrainedAutoencoder.encode, PretrainedAutoencoder.decode, list[int]()

    def encode_one(space: PretrainedAutoencoder, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 1:
            raise torch.OutOfMemoryError("too many")
        return encode(space, images)

    def decode_later(space: PretrainedAutoencoder, latents: torch.Tensor) -> torch.Tensor:
        sizes.append(len(latents))
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("not now")
        return decode(space, latents)

    monkeypatch.setattr(PretrainedAutoencoder, "encode", encode_one)
    monkeypatch.setattr(PretrainedAutoencoder, "decode", decode_later)
    trainer = trained(build("training.preview_steps=6"))
    assert set(sizes) == {1}
    assert len(sizes) == 2
    assert trainer.run.parts.autoencoder.model is None  # type: ignore[union-attr]
    assert (trainer.folder / "previews" / "step-000006.png").is_file()


def test_gradient_checkpointing_changes_memory_and_not_the_result(
    build: Build, tmp_path: Path
) -> None:
    folders = []
    for value in ("false", "true"):
        folders.append(tmp_path / value)
        trained(build(
            f"training.gradient_checkpointing={value}", "model.dropout=0.2",
            f"training.output_dir='{folders[-1]}'",
        ))  # fmt: skip
    a, b = (weights(folder / "checkpoint-6") for folder in folders)
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)
