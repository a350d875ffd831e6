"""Sizes of several shapes: which picture gets which, and training with them."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pretrained
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from processes import Run, run_in
from runs import events, messages, trained
from torch._dynamo.testing import CompileCounter

from limner.config import Config, load_config
from limner.data import examples
from limner.data.buckets import (
    FEWEST,
    Buckets,
    nearest,
    size_for,
    sizes_around,
    visible,
    with_enough,
)
from limner.data.examples import Batch, DecodedImages, TrainingExamples
from limner.data.formats.folders import FolderImages
from limner.data.image_sizes import shapes_of
from limner.data.images import decode, upright_size
from limner.data.open import open_data
from limner.device import allow_shapes
from limner.errors import LimnerError
from limner.evaluation.end_of_run import evaluate_run
from limner.models.dit import DiT, published_positions
from limner.models.modern import ModernDiT, rotation_table
from limner.models.text_encoder import TextEncoder
from limner.reports.run_folder import read_run
from limner.reports.run_report import write_report
from limner.training.trainer import Trainer

Build = Callable[..., Config]
SHAPES = [(48, 32), (32, 48), (36, 36)]  # height, width


# Sizes


@pytest.mark.parametrize(("side", "unit"), [(16, 4), (48, 4), (64, 4), (256, 16), (512, 16)])
@pytest.mark.parametrize("most", [1.0, 1.5, 2.0, 3.0])
def test_sizes_are_whole_patches_of_no_more_pixels_than_the_square(
    side: int, unit: int, most: float
) -> None:
    sizes = sizes_around(side, unit, most)
    assert (side, side) in sizes
    assert len(set(sizes)) == len(sizes)
    for height, width in sizes:
        assert height % unit == width % unit == 0
        # Not more memory than the square; not much less learned from a picture either.
        assert side**2 - unit * max(height, width) < height * width <= side**2
        assert max(height / width, width / height) <= most
        assert (width, height) in sizes


def test_the_shapes_of_cameras_lose_next_to_nothing() -> None:
    sizes = sizes_around(512, 16, 2.0)
    for ratio in (1, 4 / 3, 3 / 2, 16 / 9):
        shapes = np.array([[900, round(900 * ratio)], [round(900 * ratio), 900]])
        lost = 1 - visible(shapes, np.array(sizes)[nearest(shapes, sizes)])
        assert lost.max() < 0.06


@settings(max_examples=200, deadline=None)
@given(st.floats(0.5, 2.0), st.sampled_from([(64, 4), (256, 16), (512, 16)]))
def test_more_of_every_picture_is_seen_than_in_a_square(
    ratio: float, size: tuple[int, int]
) -> None:
    side, unit = size
    sizes = sizes_around(side, unit, 2.0)
    shapes = np.array([[10_000, round(10_000 * ratio)]])
    bucket = int(nearest(shapes, sizes)[0])
    each = [float(visible(shapes, np.array(s))[0]) for s in sizes]
    assert each[bucket] == max(each)  # no other size shows more
    assert each[bucket] >= 0.9
    square = float(visible(shapes, np.array([side, side]))[0])
    assert each[bucket] > square or sizes[bucket] == (side, side)


def test_what_is_left_of_a_picture_is_what_was_promised(tmp_path: Path) -> None:
    # Columns 0 to 239 in a picture of 240 x 100: which of them are still there?
    columns = np.broadcast_to(np.arange(240, dtype=np.uint8)[None, :, None], (100, 240, 3))
    Image.fromarray(np.ascontiguousarray(columns)).save(tmp_path / "wide.png")
    seen = decode(tmp_path / "wide.png", (32, 64))
    assert seen.shape == (32, 64, 3)
    left = (int(seen[0, -1, 0]) - int(seen[0, 0, 0])) / 240
    promised = float(visible(np.array([[100, 240]]), np.array([32, 64]))[0])
    assert left == pytest.approx(promised, abs=0.03)


def test_small_buckets_join_the_next() -> None:
    sizes = sizes_around(64, 4, 2.0)
    shapes = np.array([[100, 100]] * 500 + [[100, 150]] * 400 + [[200, 100]] * (FEWEST - 1))
    left = with_enough(shapes, sizes)
    assert (64, 64) in left
    assert len(left) == 2
    assert min(np.bincount(nearest(shapes, left))) >= FEWEST
    assert with_enough(shapes[:1], sizes) == [sizes[nearest(shapes[:1], sizes)[0]]]


@pytest.mark.parametrize(("orientation", "turned"), [(1, False), (3, False), (6, True), (8, True)])
def test_a_picture_lying_on_its_side_is_measured_as_it_is_seen(
    orientation: int, turned: bool, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (90, 60)).save(tmp_path / "a.jpg", exif=exif)
    seen = upright_size(tmp_path / "a.jpg")
    assert seen == ((90, 60) if turned else (60, 90))
    from limner.data.images import open_rgb

    assert open_rgb(tmp_path / "a.jpg").size == (seen[1], seen[0])
    assert upright_size(b"no picture") is None


def test_sizes_of_pictures_are_remembered_and_read_again_when_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limner.data.image_sizes.REMEMBERED_FROM", 2)
    monkeypatch.setattr("limner.data.verify.RACY_NS", 0)
    folder = own_folder(tmp_path / "data", 6)
    dataset, looked = FolderImages(folder), list[str]()

    def look(image: Path) -> tuple[int, int] | None:
        looked.append(image.name)
        return upright_size(image)

    monkeypatch.setattr("limner.data.image_sizes.upright_size", look)
    first = shapes_of(dataset, dataset.rows, tmp_path / "cache")
    assert [tuple(shape) for shape in first] == [SHAPES[i % 3] for i in range(6)]
    assert len(looked) == 6
    Image.new("RGB", (10, 30)).save(folder / "03.png")
    (folder / "04.png").write_bytes(b"no picture")
    again = shapes_of(dataset, dataset.rows, tmp_path / "cache")
    assert sorted(looked[6:]) == ["03.png", "04.png"]
    assert again[3].tolist() == [30, 10]
    assert again[4].tolist() == [1, 1]  # decoding it says what is wrong
    (tmp_path / "cache" / "shapes.npy").write_bytes(b"damaged")
    assert (shapes_of(dataset, dataset.rows, tmp_path / "cache") == again).all()


def test_pictures_inside_a_table_are_measured_too(tmp_path: Path, tiny_config: Build) -> None:
    import datasets

    folder = own_folder(tmp_path / "pictures", 12)
    files = [str(path) for path in sorted(folder.glob("*.png"))]
    table = datasets.Dataset.from_dict({"image": files, "text": [f"colour {i}" for i in range(12)]})
    table.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "table"))
    words = f"data.dataset_path='{tmp_path / 'table'}'", "data.dataset_name=null"
    config = tiny_config(
        *words, "data.num_samples=null", "data.buckets=[[20, 12], [12, 20], [16, 16]]"
    )
    data = open_data(config, unit=4)
    assert data.trained.buckets is not None
    assert sum(data.trained.buckets.counts()) + sum(data.held_out.buckets.counts()) == 12
    for i, row in enumerate(data.trained.rows):
        original = upright_size(data.set.image(row))
        assert original is not None
        assert tuple(data.trained.load(i).shape[:2]) == {
            (48, 32): (20, 12), (32, 48): (12, 20), (36, 36): (16, 16)
        }[original]  # fmt: skip


# Pictures


def own_folder(folder: Path, count: int, ground: int = 40) -> Path:
    """Pictures of three shapes in turn, each of a colour of its own, with captions."""
    folder.mkdir(parents=True)
    for i in range(count):
        height, width = SHAPES[i % 3]
        pixels = np.full((height, width, 3), ground, dtype=np.uint8)
        pixels[2 : height // 2, 2 : width // 2] = (8 * i % 256, 200, 255 - 8 * i % 256)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"colour {i}", encoding="utf-8")
    return folder


def test_pictures_of_several_sizes_share_memory(tmp_path: Path) -> None:
    dataset = FolderImages(own_folder(tmp_path / "data", 9))
    sizes = ((24, 16), (16, 24), (20, 20))
    buckets = Buckets(sizes, np.arange(9, dtype=np.int16) % 3)
    kept = DecodedImages(dataset, dataset.rows, 20, 1, buckets)
    anew = DecodedImages(dataset, dataset.rows, 20, 0, buckets)
    assert kept.kept is not None
    assert anew.kept is None
    assert kept.kept.numel() == 3 * 3 * (24 * 16 * 2 + 20 * 20)
    for _ in range(2):
        for i in range(9):
            assert kept.load(i).shape == (*sizes[i % 3], 3)
            assert torch.equal(kept.load(i), anew.load(i))
    assert int(kept.state.sum()) == 9


def test_with_little_shared_memory_pictures_are_decoded_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = own_folder(tmp_path / "data", 20)
    config = load_config(None, [f"data.dataset_path='{folder}'", "data.image_size=16"])
    assert open_data(config).notes == ()

    def none_left(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>")

    def full(folder: Path) -> Any:
        return SimpleNamespace(free=3 * 16**2)

    for name, fault, target in (
        ("share_memory_", none_left, torch.Tensor),
        ("disk_usage", full, examples.shutil),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, fault)
            data = open_data(config)
            bad = TrainingExamples(data.trained, torch.tensor, 0, 0, 1, 0).bad
        assert len(bad) == len(data.trained.rows)
        assert data.trained.kept is None
        assert any("not enough shared memory" in line for line in data.notes)
        for _ in range(2):
            assert data.trained.load(0).shape == (16, 16, 3)


# Training


@pytest.fixture
def mixed(tiny_config: Build, tmp_path: Path) -> Build:
    folder = own_folder(tmp_path / "data", 36)

    def build(*overrides: str) -> Config:
        return tiny_config(
            "data.dataset_name=null",
            "data.num_samples=null",
            f"data.dataset_path='{folder}'",
            f"cache.folder='{tmp_path / 'cache'}'",
            "data.train_split=0.8",
            "data.buckets=auto",
            "training.caption_dropout=0.3",
            "training.preview_prompts=null",
            *overrides,
        )

    return build


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)


def shapes_trained(trainer: Trainer, updates: int) -> list[tuple[int, ...]]:
    with trainer.batches:
        batches = [trainer.batches.of_next_update()[0] for _ in range(updates)]
    return [tuple(batch.image.shape[-2:]) for batch in batches]


@pytest.mark.parametrize("architecture", ["modern", "dit"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_is_the_same_run(
    architecture: str, num_workers: int, mixed: Build, tmp_path: Path
) -> None:
    words = f"model.architecture={architecture}", f"training.num_workers={num_workers}"
    whole = trained(mixed(*words, "training.preview_steps=6"))
    sizes = whole.config.data.buckets
    assert isinstance(sizes, tuple)
    assert sizes == ((20, 12), (16, 16), (12, 20))
    assert load_config(whole.folder / "config.yaml").data.buckets == sizes
    assert any("cropped on average" in said for said in messages(whole.folder))
    assert len(list((whole.folder / "previews").iterdir())) == 1
    told = read_run(whole.folder).buckets
    assert [(b["height"], b["width"]) for b in told] == list(sizes)
    assert sum(b["trained"] + b["held_out"] for b in told) == 36
    assert "20 × 12" in write_report(whole.folder).read_text(encoding="utf-8")
    kept = weights(whole.folder / "checkpoint-6")
    shutil.rmtree(whole.folder / "checkpoint-6")
    again = trained(mixed(*words))  # auto finds the run, and its sizes
    assert again.config.data.buckets == sizes
    assert any("resumed at step 3" in said for said in messages(whole.folder))
    other = weights(whole.folder / "checkpoint-6")
    assert all(torch.equal(kept[name], other[name]) for name in kept)


def test_captions_are_drawn_in_the_size_of_their_picture_and_found_among_all(mixed: Build) -> None:
    trainer = trained(mixed("training.max_steps=2"))
    results = evaluate_run(trainer.folder, trainer.config, trainer.data)
    counts = {split: found["count"] for split, found in results["recall"].items()}
    assert sum(counts.values()) == 36
    shown = json.loads((trainer.folder / "samples.json").read_text("utf-8"))
    sizes = set()
    for sample in shown:
        drawn, truth = (Image.open(trainer.folder / sample[key]) for key in ("file", "truth"))
        assert drawn.size == truth.size
        sizes.add(drawn.size)
    assert len(sizes) == 3


def test_all_sizes_are_trained(mixed: Build) -> None:
    shapes = shapes_trained(Trainer(mixed()), 21)
    assert set(shapes) == {(20, 12), (16, 16), (12, 20)}


def test_micro_batches_change_rounding_alone(mixed: Build) -> None:
    words = "optimizer.type=adamw", "training.max_steps=3", "training.effective_batch_size=4"
    one = trained(mixed(*words, "training.batch_size=4"))
    output = f"training.output_dir='{one.folder}-2'"
    two = trained(mixed(*words, "training.batch_size=2", output))
    a, b = one.model.state_dict(), two.model.state_dict()
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, atol=2e-5, rtol=1e-4)


def test_an_update_of_another_number_of_pictures_is_still_of_one_shape(mixed: Build) -> None:
    first = trained(mixed("training.max_steps=3"))  # 12 pictures, no whole number of 8
    second = mixed("training.max_steps=9", "training.batch_size=8")
    trainer = Trainer(second, resume=first.folder / "checkpoint-3")
    assert trainer.state.images == 12
    assert len(shapes_trained(trainer, 10)) == 10  # pictures of two shapes would not stack


def test_two_processes_make_the_updates_of_one(mixed: Build, tmp_path: Path) -> None:
    words = ["optimizer.type=adamw", "training.max_steps=3"]
    one = trained(mixed(*words, "training.batch_size=8")).folder
    two = tmp_path / "two"
    config = mixed(*words, "training.batch_size=4", f"training.output_dir='{two}'")
    run_in(2, Run(config))
    for a, b in zip(events(one, "train"), events(two, "train"), strict=True):
        assert [b["loss"], b["grad_norm"]] == pytest.approx([a["loss"], a["grad_norm"]], rel=1e-4)
    expected, found = weights(one / "checkpoint-3"), weights(two / "checkpoint-3")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=1e-4)


def test_latents_are_those_of_the_pictures_in_their_sizes(mixed: Build, tmp_path: Path) -> None:
    vae = pretrained.tiny_autoencoder(tmp_path / "vae")
    words = f"vae.pretrained_model_name='{vae}'", "model.patch_size=1", "data.horizontal_flip=0.5"
    whole = trained(mixed(*words))
    space, data = whole.run.parts.autoencoder, whole.data
    space.load(torch.device("cpu"), torch.float32)
    shapes = set()
    for source, images in (
        (whole.run.inputs.trained, data.trained),
        (whole.run.inputs.held_out, data.held_out),
    ):
        for i in range(len(images.rows)):
            expected = space.encode(images.tensor(i)[None])[0]
            torch.testing.assert_close(source.tensor(i), expected, atol=2e-3, rtol=2e-3)
            shapes.add(tuple(expected.shape))
    flipped = space.encode(data.trained.tensor(0).flip(-1)[None])[0]
    torch.testing.assert_close(
        whole.run.inputs.trained.tensor(0, True), flipped, atol=2e-3, rtol=2e-3
    )
    assert len(shapes) == 3
    # The same pictures in other sizes, with the same cache: none is taken for another.
    sizes = "data.buckets=[[16, 12], [12, 16], [12, 12]]"
    smaller = Trainer(mixed(*words, sizes, f"training.output_dir='{tmp_path / 'smaller'}'"))
    assert {tuple(smaller.run.inputs.trained.tensor(i).shape[1:]) for i in range(12)} == {
        (4, 3),
        (3, 4),
        (3, 3),
    }
    kept = weights(whole.folder / "checkpoint-6")
    shutil.rmtree(whole.folder / "checkpoint-6")
    again = trained(mixed(*words))
    other = weights(again.folder / "checkpoint-6")
    assert all(torch.equal(kept[name], other[name]) for name in kept)


def test_what_stands_in_for_a_bad_picture_is_of_its_size(mixed: Build, tmp_path: Path) -> None:
    trainer = Trainer(mixed("data.check_pictures=false"))
    rows, of_row = trainer.data.trained.rows, trainer.data.trained.buckets
    assert of_row is not None
    for position in (0, 1, 4, 7):  # after their headers were read
        (tmp_path / "data" / rows[position].key).write_bytes(b"no picture")
    shapes = shapes_trained(trainer, 16)
    assert len(set(shapes)) == 3
    with trainer.batches:
        batches = [trainer.batches.of_next_update()[0] for _ in range(16)]
    refused = {row.key for batch in batches for row in batch.refused}
    assert refused == {rows[position].key for position in (0, 1, 4, 7)}


def test_a_picture_set_of_squares_is_trained_as_without_buckets(tiny_config: Build) -> None:
    with_them = Trainer(tiny_config("data.buckets=auto"))
    assert with_them.config.data.buckets == ((16, 16),)
    with with_them.batches:
        batch = with_them.batches.of_next_update()[0]
    assert isinstance(batch, Batch)
    assert batch.image.shape == (4, 3, 16, 16)


def test_another_choice_of_sizes_is_another_run(mixed: Build) -> None:
    trained(mixed("training.max_steps=3"))
    with pytest.raises(LimnerError, match=r"data\.buckets"):
        Trainer(mixed("data.buckets=null"))


@pytest.mark.parametrize(
    ("buckets", "said"),
    [
        ("[[16, 18]]", "16 x 18 is not divisible by 4"),
        ("[[16, 20]]", "more pixels than data.image_size"),
        ("[]", "the list is empty"),
        ("square", "auto"),
    ],
)
def test_sizes_that_cannot_be_used_say_why(buckets: str, said: str, tiny_config: Build) -> None:
    with pytest.raises(LimnerError, match=said):
        tiny_config(f"data.buckets={buckets}")


# Positions


def test_a_rectangle_spans_the_same_units_along_its_longer_side() -> None:
    tall, wide = rotation_table(8, 4, 16), rotation_table(4, 8, 16)
    # Turning a picture swaps what stands for rows with what stands for columns.
    turned = wide.unflatten(1, (4, 8)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(torch.cat(tall.chunk(2, -1)[::-1], -1), turned)
    assert not math.isnan(float(tall.sum()))
    square, part = published_positions(6, 6, 32), published_positions(4, 6, 32)
    assert torch.equal(square[: 4 * 6], part)


@pytest.mark.parametrize("architecture", [ModernDiT, DiT])
def test_the_second_size_compiles_code_for_all_others(architecture: type[DiT]) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    width = {"hidden_size": 64, "num_layers": 1, "num_heads": 2, "mlp_ratio": 4.0, "dropout": 0.0}
    model = architecture(in_channels=3, patch_size=4, text_width=64, **width)  # type: ignore[arg-type]
    reader, limit = TextEncoder(300, 16, 64, 1), torch._dynamo.config.recompile_limit
    words = reader(torch.ones(2, 16, dtype=torch.int64))
    try:
        for block in model.blocks:
            block.compile(backend=counter)
        made = []
        for height, wide in sizes_around(64, 4, 2.0):
            model(torch.zeros(2, 3, height, wide), torch.ones(2), words)
            made.append(counter.frame_count)
        assert made[1] == made[-1]
        allow_shapes(40)  # and where it is not so, torch does not give up
        assert torch._dynamo.config.recompile_limit == 80
    finally:
        torch._dynamo.config.recompile_limit = limit
        torch._dynamo.reset()


# Drawing


def test_a_shape_is_drawn_in_the_nearest_size_that_was_trained(mixed: Build) -> None:
    from limner.inference.generator import ImageGenerator

    generator = ImageGenerator(trained(mixed()).folder, device="cpu")
    assert generator.generate("colour 1", aspect_ratio="3:2").size == (20, 12)
    assert generator.generate("colour 1", aspect_ratio=0.6).size == (12, 20)
    assert generator.generate("colour 1", aspect_ratio="1:1").size == (16, 16)
    assert generator.generate("colour 1").size == (16, 16)
    for wrong in ("3:0", "wide", "100:1"):
        with pytest.raises(LimnerError, match="--aspect_ratio"):
            generator.generate("colour 1", aspect_ratio=wrong)
    with pytest.raises(LimnerError, match="--height"):
        generator.generate("colour 1", aspect_ratio="3:2", height=16)


def test_of_a_model_of_squares_a_shape_has_as_many_pixels() -> None:
    assert size_for(1.5, (), 256, 16) == (208, 320)
    assert size_for(1.0, (), 64, 4) == (64, 64)
