"""A sweep finds the best way to draw at each cost, and makes it the checkpoint's default."""

import dataclasses
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limner.apps.sweep import search as searching
from limner.apps.sweep import sweep as sweeping
from limner.apps.sweep.measurement import Measurement, by_quality, cheapest, jackknife_error
from limner.apps.sweep.prompts import gallery_of, parts_of
from limner.apps.sweep.record import Record
from limner.apps.sweep.score import Quality, distance_and_without, mean_without
from limner.apps.sweep.search import TimeIsUp, at_cost, search
from limner.apps.sweep.store_settings import store_sampling
from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.locate import newest_good
from limner.cli import main
from limner.config import Config, SamplingConfig, load_config
from limner.data.open import Data, open_data
from limner.data.split import in_second_half
from limner.diffusion.noise_schedule import FlowMatchingSchedule, VPSchedule
from limner.errors import LimnerError
from limner.evaluation.networks.networks import EfficientNet
from limner.evaluation.swept import FILE, swept_note
from limner.inference.generator import ImageGenerator
from limner.inference.sampling_settings import function_evaluations
from limner.metrics.kernel_distance import kernel_distance

FLOW = FlowMatchingSchedule()


def measured(
    cost: int,
    distances: Sequence[float] | np.ndarray,
    matches: Sequence[float] | None = None,
    sampling: SamplingConfig | None = None,
    count: int | None = None,
) -> Measurement:
    """Of a distance that is the mean over groups of prompts."""
    a = np.asarray(distances)
    b = None if matches is None else np.asarray(matches)
    return Measurement(
        sampling or SamplingConfig(num_inference_steps=cost),
        cost,
        count or len(a),
        float(a.mean()),
        None if b is None else float(b.mean()),
        None,
        mean_without(a, range(len(a))),
        () if b is None else mean_without(b, range(len(b))),
    )


# ---- the search --------------------------------------------------------------------------------


def made_up(sampling: SamplingConfig) -> float:
    """A quality whose best is at scale 2, guidance in 0.2-0.8, unipc, shift 1.5, power 0.85."""
    wrong = sampling.guidance_interval != (0.2, 0.8), sampling.scheduler_type != "unipc"
    return (
        math.log(sampling.guidance_scale / 2) ** 2
        + 0.3 * sum(wrong)
        + math.log(sampling.shift / 1.5) ** 2
        + math.log(sampling.timestep_power / 0.85) ** 2
        + 0.1 * (sampling.guidance_type != "cfg")
        + 1 / sampling.num_inference_steps
    )


class MadeUp:
    """Measures without a model, with less chance in more pictures; remembers what was asked."""

    def __init__(self, most: int = 10**9) -> None:
        self.asked: list[tuple[SamplingConfig, int]] = []
        self.most = most

    def __call__(self, sampling: SamplingConfig, count: int) -> Measurement:
        if len(self.asked) >= self.most:
            raise TimeIsUp
        self.asked.append((sampling, count))
        shared = 5.0 / count  # of the noise that all settings draw from
        own = np.random.default_rng(zlib.crc32(repr(sampling).encode())).normal(size=12) / count
        prompts = made_up(sampling) + shared + 2 * (own - own.mean())
        return measured(function_evaluations(sampling, FLOW), prompts, None, sampling, count)


def searched(measure: MadeUp, costs: tuple[int, ...] = (8, 16)) -> dict[int, SamplingConfig]:
    return search(load_config(), FLOW, SamplingConfig(), costs, 16, measure)[0]


def test_the_planted_best_is_found_at_each_cost() -> None:
    found = searched(MadeUp(), (4, 8, 16, 32))
    for cost, best in found.items():
        assert function_evaluations(best, FLOW) <= cost
        assert best.guidance_interval == (0.2, 0.8)
        assert best.scheduler_type == "unipc"
        assert best.guidance_type == "cfg"
        assert best.shift == 1.5
        assert best.timestep_power == 0.85
        assert best.guidance_scale == pytest.approx(2, rel=0.16)
    assert [b.num_inference_steps for _, b in sorted(found.items())] == sorted(
        b.num_inference_steps for b in found.values()
    )


def test_many_settings_see_few_pictures_and_few_see_many() -> None:
    measure = MadeUp()
    searched(measure, (16,))
    by_count = {n: sum(count == n for _, count in measure.asked) for n in (4, 8, 16)}
    assert by_count[4] > 1.5 * by_count[8] > 2 * by_count[16] > 0
    assert sum(by_count.values()) == len(measure.asked)


def test_a_second_cost_takes_less_than_the_first() -> None:
    one, two = MadeUp(), MadeUp()
    searched(one, (16,))
    searched(two, (16, 8))
    assert len(two.asked) < 1.7 * len(one.asked)


def test_out_of_time_there_is_a_setting_for_each_cost() -> None:
    found, finished = search(load_config(), FLOW, SamplingConfig(), (4, 16), 16, MadeUp(most=10))
    assert not finished
    assert set(found) == {4, 16}


def test_what_does_not_fit_the_model_is_not_tried() -> None:
    path = VPSchedule()
    config = load_config({"scheduler": {"objective": "diffusion"}})
    measure = MadeUp()
    search(config, path, config.sampling, (8,), 8, measure)
    assert {s.shift for s, _ in measure.asked} == {1.0}
    assert {s.timestep_power for s, _ in measure.asked} == {1.0}
    assert {s.guidance_type for s, _ in measure.asked} == {"cfg", "apg"}
    assert {s.scheduler_type for s, _ in measure.asked} == {"dpmsolver++", "unipc", "ddim", "heun"}


@pytest.mark.parametrize("cost", [1, 2, 5, 16, 33])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"guidance_scale": 1.0},
        {"guidance_interval": (0.3, 0.8)},
        {"scheduler_type": "heun"},
        {"zero_init_steps": 1, "shift": 2.0},
    ],
)
def test_a_cost_buys_as_many_steps_as_fit(cost: int, changes: dict[str, Any]) -> None:
    sampling = SamplingConfig(**changes)
    every = {
        n: function_evaluations(sampling.model_copy(update={"num_inference_steps": n}), FLOW)
        for n in range(1 + sampling.zero_init_steps, 60)
    }
    fitting = [n for n, evaluations in every.items() if evaluations <= cost]
    found = at_cost(sampling, FLOW, cost)
    assert (found.num_inference_steps if found else None) == max(fitting, default=None)


# ---- what is better, and how sure that is ------------------------------------------------------


def test_the_error_of_a_difference_is_that_of_the_mean_of_differences() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 20))
    found = jackknife_error(mean_without(a, range(20)), mean_without(b, range(20)))
    assert found == pytest.approx((a - b).std(ddof=1) / math.sqrt(20))


def test_what_all_settings_share_is_no_noise_between_them() -> None:
    prompts = np.random.default_rng(1).normal(size=12)  # some prompts are harder than others
    dear, near, worse = (measured(c, list(prompts + d)) for c, d in ((32, 0), (16, 0), (8, 0.01)))
    assert cheapest([dear, near, worse]) is near  # 0.01 is certain, although prompts differ by 1


def test_the_cheapest_within_noise_of_the_best_is_taken() -> None:
    dear = measured(32, [1.0, 1.2, 0.8, 1.1, 0.9, 1.0])
    cheap = measured(16, [1.3, 0.9, 1.1, 0.8, 1.2, 1.0])
    bad = measured(4, [2.0, 2.1, 1.9, 2.2, 2.0, 2.1])
    assert by_quality([bad, cheap, dear])[0].distance == pytest.approx(1.0)
    assert cheapest([bad, cheap, dear]) is cheap


def test_pictures_that_do_not_follow_their_captions_are_not_the_best() -> None:
    follows = measured(16, [1.0] * 6, [1.0, 0.9, 1.0, 1.0, 0.9, 1.0])
    strays = measured(8, [0.5] * 6, [0.2, 0.3, 0.1, 0.2, 0.4, 0.1])
    assert by_quality([strays, follows])[0] is follows
    assert cheapest([strays, follows]) is follows
    nearly = measured(8, [0.5] * 6, [1.0, 0.9, 0.9, 1.0, 1.0, 0.9])
    assert cheapest([strays, nearly, follows]) is nearly


def test_a_distance_without_each_group_is_that_of_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(30, 16, generator=generator)
    captions = [i % 30 for i in range(40)]
    drawn = real[captions] + 0.3 * torch.rand(40, 16, generator=generator)
    found, without = distance_and_without(drawn, captions, real)
    assert found == pytest.approx(kernel_distance(drawn, real))
    assert len(without) == 24
    for group in (0, 5, 23):
        keep = torch.tensor([c % 24 != group for c in captions])
        theirs = torch.tensor([i % 24 != group for i in range(30)])
        assert without[group] == pytest.approx(kernel_distance(drawn[keep], real[theirs]))


# ---- whose captions ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emoji() -> Data:
    return open_data(
        load_config({"data": {"dataset_name": "emoji", "subset": "demo", "image_size": 16}})
    )


@pytest.mark.parametrize("images", [8, 64])
def test_no_picture_is_chosen_on_and_reported_on(emoji: Data, images: int) -> None:
    chosen, reported = parts_of(emoji, images)
    assert not set(chosen.keys) & set(reported.keys)
    assert len(chosen.keys) == images
    held_out = {row.key for row in emoji.held_out.rows}
    assert set(reported.keys) <= held_out
    assert all(in_second_half(key) for key in reported.keys)
    assert not any(in_second_half(key) for key in set(chosen.keys) & held_out)
    assert chosen.held_out == min(images, sum(not in_second_half(k) for k in held_out))
    seeds = [set(range(p.first_seed, p.first_seed + images)) for p in (chosen, reported)]
    assert not seeds[0] & seeds[1]


def test_a_part_knows_its_own_pictures(emoji: Data) -> None:
    chosen, _ = parts_of(emoji, 16)
    gallery = gallery_of(emoji, chosen)
    assert gallery is not None
    assert len(gallery) == 335
    for d, image in zip(chosen.asked, chosen.images, strict=True):
        drawn = dataclasses.replace(d, image=Image.fromarray(image.numpy()))
        gallery.rank([drawn])
        assert drawn.rank == 1
    places = [gallery.places[d.split, d.position] for d in chosen.asked if d.position is not None]
    assert places == list(range(16))  # its own come first, whatever the most is
    rows = {
        row.key: (p, i) for p in (emoji.trained, emoji.held_out) for i, row in enumerate(p.rows)
    }
    for key, caption, image in zip(chosen.keys, chosen.captions, chosen.images, strict=True):
        source, position = rows[key]
        assert source.rows[position].captions[0] == caption
        assert torch.equal(source.load(position), image)


def test_more_pictures_than_captions_are_of_the_same_captions_with_other_noise(emoji: Data) -> None:
    _, reported = parts_of(emoji, 8)
    drawings = reported.drawings(5, 11)
    assert [d.prompt for d in drawings] == [reported.captions[i % 8] for i in range(5, 11)]
    assert [d.seed for d in drawings] == [reported.first_seed + i for i in range(5, 11)]
    assert all(d.image is None for d in (*drawings, *reported.asked))


def test_where_nothing_is_held_out_other_trained_captions_report(
    tiny_config: Callable[..., Config],
) -> None:
    data = open_data(tiny_config("data.train_split=1.0"))
    data = Data(data.set, data.trained, type(data.held_out)(data.set, [], 16, 0))
    chosen, reported = parts_of(data, 12)
    assert (chosen.held_out, reported.held_out) == (0, 0)
    assert len(reported.keys) == 8
    assert not set(chosen.keys) & set(reported.keys)


# ---- a sweep of a model ------------------------------------------------------------------------


class SeenFromAfar:
    """In the place of EfficientNet: colours of 4 x 4 places."""

    def __init__(self, device: object) -> None:
        pass

    def features(self, images: torch.Tensor) -> torch.Tensor:
        x = images.permute(0, 3, 1, 2).float() / 255
        return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)

    def identity(self) -> dict[str, str]:
        return {"network": "seen from afar", "weights_sha256": "none"}


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of its own to sweep, and a search of seconds."""
    folder = tmp_path / "checkpoint-6"
    shutil.copytree(trained / "outputs" / "checkpoint-6", folder)
    few = {"guidance_scale": (1.0, 3.0), "shift": (1.0, 2.0)}
    monkeypatch.setattr(searching, "CHOICES", few)
    monkeypatch.setattr(searching, "FINER", (1.2,))
    monkeypatch.setattr(sweeping, "EfficientNet", SeenFromAfar)
    return folder


def swept(checkpoint: Path, **changes: Any) -> sweeping.Sweep:
    return sweeping.sweep(checkpoint, **{"costs": (2, 4), "images": 6, "device": "cpu"} | changes)


def test_the_best_becomes_the_default_and_is_drawn_with(checkpoint: Path) -> None:
    result = swept(checkpoint, store_cost=4)
    best = next(row for row in result.rows if row.name == "4")
    assert result.finished
    assert function_evaluations(best.sampling, FLOW) <= 4
    generator = ImageGenerator(checkpoint, device="cpu")
    assert generator.sampling == best.sampling
    asked = ImageGenerator(checkpoint, device="cpu").generate(
        "a red circle", seed=3, **best.sampling.model_dump()
    )
    drawn = generator.generate("a red circle", seed=3)
    assert drawn.tobytes() == asked.tobytes()
    assert (checkpoint / "sweep.png").is_file()

    record = json.loads((checkpoint / FILE).read_text(encoding="utf-8"))
    assert record["stored"]["sampling"] == best.sampling.model_dump(mode="json")
    assert record["before"]["num_inference_steps"] == 2  # conftest's
    assert "held-out captions" in (swept_note(checkpoint) or "")
    assert {line["part"] for line in record["measured"]} == {"chosen", "reported"}
    (protocol,) = record["protocols"].values()
    assert protocol["network"]["weights_sha256"]
    # A record is known by all of this: with another key an earlier one would be measured anew.
    each = ("captions", "count", "held_out", "first_seed", "pictures")
    assert set(protocol) == {
        *("checkpoint", "guide", "dataset", "image_size", "dtype", "device", "network", "follow"),
        *(f"{part}_{key}" for part in ("chosen", "reported") for key in each),
    }


def test_a_swept_checkpoint_verifies_and_its_run_goes_on(
    tiny_config: Callable[..., Config], checkpoint: Path
) -> None:
    before = Checkpoint.open(checkpoint).config
    swept(checkpoint)
    found, passed_over = newest_good(checkpoint.parent)
    assert found == checkpoint
    assert not passed_over
    after = Checkpoint.open(checkpoint).config
    assert after.sampling != before.sampling
    assert after.model_copy(update={"sampling": before.sampling}) == before


def test_what_was_measured_is_not_measured_again(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = swept(checkpoint)

    def never(*_: object) -> Measurement:
        raise AssertionError("measured again")

    monkeypatch.setattr(Quality, "measure", never)
    again = swept(checkpoint)
    assert again.rows == first.rows
    assert again.best == first.best


def test_a_sweep_that_ran_out_of_time_goes_on_where_it_was(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "checkpoint-7"
    shutil.copytree(checkpoint, other)
    cut = swept(checkpoint, minutes=1e-9)
    assert not cut.finished
    assert all(row.reported is None for row in cut.rows)
    known = len(Record(checkpoint / FILE).values["measured"])
    config = load_config(checkpoint / "config.yaml")
    assert config.sampling == cut.best.sampling
    gone_on, at_once = swept(checkpoint), swept(other)
    assert gone_on.finished
    assert len(Record(checkpoint / FILE).values["measured"]) > known
    # What it begins with is what was there before any sweep, so that both end alike.
    assert [row.sampling for row in gone_on.rows] == [row.sampling for row in at_once.rows]


def test_a_default_set_by_hand_is_what_was_there_before(checkpoint: Path) -> None:
    swept(checkpoint)
    by_hand = SamplingConfig(num_inference_steps=1, guidance_scale=1.0)
    store_sampling(checkpoint, by_hand)
    assert swept(checkpoint).rows[0].sampling == by_hand


def test_only_reporting_leaves_the_settings_alone(checkpoint: Path) -> None:
    before = (checkpoint / "config.yaml").read_bytes()
    command = ["sweep", str(checkpoint), "--costs", "2", "--pictures", "4", "--device", "cpu"]
    assert main([*command, "--dry-run"]) == 0
    assert (checkpoint / "config.yaml").read_bytes() == before
    assert swept_note(checkpoint) is None
    assert main(command) == 0
    assert swept_note(checkpoint) is not None


def test_the_command_shows_progress_and_a_table(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "EfficientNet", EfficientNet)  # the real one
    command = ["sweep", str(checkpoint), "--costs", "2", "4", "--pictures", "4", "--store", "2"]
    assert main([*command, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "  2 evaluations |   4 images | distance " in said
    assert "settings are selected on" in said
    table = said[said.index("evaluations  distance") :]
    for start in ("before", "<= 2", "<= 4"):
        assert f"\n{start}" in table
    assert "> the new default" in table


def test_another_model_is_measured_anew(checkpoint: Path) -> None:
    swept(checkpoint)
    known = len(Record(checkpoint / FILE).values["measured"])
    manifest = checkpoint / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8") + "\n", "utf-8")  # what is hashed for weights
    swept(checkpoint)
    record = Record(checkpoint / FILE)
    assert len(record.values["protocols"]) == 2
    assert len(record.values["measured"]) > known


@pytest.mark.parametrize("damage", ["{", '{"format": 1}', '{"format": 7}', "[]"])
def test_a_damaged_record_is_reported_and_left(
    damage: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / FILE).write_text(damage, encoding="utf-8")
    before = (checkpoint / "config.yaml").read_bytes()
    assert main(["sweep", str(checkpoint), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "sweep.json" in said
    assert "move it away" in said
    assert (checkpoint / FILE).read_text(encoding="utf-8") == damage
    assert (checkpoint / "config.yaml").read_bytes() == before


def test_a_measurement_that_is_none_is_damage(checkpoint: Path) -> None:
    swept(checkpoint, costs=(2,), images=2)
    values = json.loads((checkpoint / FILE).read_text(encoding="utf-8"))
    values["measured"][0]["sampling"]["shift"] = -1
    (checkpoint / FILE).write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(LimnerError, match="is damaged"):
        swept(checkpoint, costs=(2,), images=2)


def test_settings_that_cannot_be_written_leave_the_old_ones(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (checkpoint / "config.yaml").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        store_sampling(checkpoint, SamplingConfig(num_inference_steps=9))
    assert (checkpoint / "config.yaml").read_bytes() == before
    assert not list(checkpoint.glob(".*"))


def test_without_the_network_captions_decide(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise LimnerError("distances require features; run pip install efficientnet")

    monkeypatch.setattr(sweeping, "EfficientNet", missing)
    result = swept(checkpoint)
    assert all(row.chosen.distance is None for row in result.rows)
    assert all(row.chosen.match is not None for row in result.rows)
    assert "pip install" in result.said[0]
    monkeypatch.setattr(sweeping, "follow_of", lambda *_: None)
    with pytest.raises(LimnerError, match="no metric to select settings with"):
        swept(checkpoint)


def test_a_guide_is_compared_and_not_stored(checkpoint: Path, trained: Path) -> None:
    before = (checkpoint / "config.yaml").read_bytes()
    guide = trained / "outputs" / "checkpoint-3"
    result = swept(checkpoint, costs=(2,), guide=guide)
    assert not result.stored
    assert (checkpoint / "config.yaml").read_bytes() == before
    with pytest.raises(LimnerError, match="cannot record its guide"):
        swept(checkpoint, costs=(2,), guide=guide, store_cost=2)


def test_memory_that_runs_out_makes_smaller_batches(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, sizes = ImageGenerator.generate_batch, []

    def limited(self: ImageGenerator, *args: Any, batch_size: int, **others: Any) -> Any:
        sizes.append(batch_size)
        if batch_size > 2:
            raise torch.OutOfMemoryError("out of memory")
        return draw(self, *args, batch_size=batch_size, **others)

    monkeypatch.setattr(ImageGenerator, "generate_batch", limited)
    assert swept(checkpoint, costs=(2,)).finished
    assert max(sizes) > 2
    assert min(sizes) <= 2
