"""What a run will take, before it is started: exact where it can be, measured where it must be."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import photo_folders
import pretrained
import pytest
import torch
from runs import measure_here, messages, trained

from limner.apps import estimate as estimates
from limner.apps.estimate import advise, estimate, length_of
from limner.cli import main
from limner.config import Config
from limner.errors import LimnerError
from limner.messages import bytes_in_words
from limner.training import memory_probe, quick_probe
from limner.training.memory_probe import GIB, images_in_memory, line, with_training
from limner.training.monitor.machine_share import Shared

Build = Callable[..., Config]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe's processor is measured for half a second; these tests look at other figures."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize("full", [False, True])
def test_the_counts_are_those_of_the_real_run(
    full: bool, tiny_config: Build, tmp_path: Path, short: None
) -> None:
    config = tiny_config("training.max_steps=1000", "training.gradient_accumulation_steps=2")
    found = estimate(config, full)
    assert not (tmp_path / "run").exists()  # the probe leaves nothing in the run's folder
    trainer = trained(tiny_config("training.save_steps=6"))
    parameters = list(trainer.model.parameters())
    assert found.parameters == sum(p.numel() for p in parameters)
    assert found.weights == found.averaged == found.gradients == 4 * found.parameters
    states = [s for o in trainer.run.optimizers.values() for s in o.state.values()]
    held = sum(v.nbytes for state in states for v in state.values() if hasattr(v, "nbytes"))
    assert found.optimizer == held
    files = sum(f.stat().st_size for f in (trainer.folder / "checkpoint-6").iterdir())
    assert found.checkpoint == pytest.approx(files, rel=0.02)
    (said,) = [m for m in messages(trainer.folder) if m.startswith("a checkpoint takes")]
    size = bytes_in_words(files)
    assert said.startswith(f"a checkpoint takes about {size}; the newest ")
    assert f"{bytes_in_words(found.checkpoint * (found.checkpoints_kept or 0))} in all" in said
    assert (found.batch_size, found.effective_batch, found.steps) == (4, 8, 1000)
    assert found.seconds == pytest.approx(1000 * 8 / found.pictures_per_second)
    assert found.peak > found.weights + found.averaged + found.gradients + found.optimizer
    assert found.advice == ()
    assert found.cache == found.seconds_to_encode == 0
    said = "\n".join(found.lines())
    assert f" x {found.checkpoints_kept} kept: " in said
    for name in ("parameters", "memory", "activations", "disk", "time", "1,000 steps"):
        assert name in said
    assert found.full is full
    assert ("off by" in said and "--full" in said) is not full


# Of pictures, and of a run


def estimated(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert main(["estimate", *map(str, words), "--json"]) == 0
    said = capsys.readouterr()
    return json.loads(said.out), said.err


def test_of_a_folder_of_pictures_it_is_what_training_would_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure_here(monkeypatch)
    monkeypatch.chdir(tmp_path)
    photo_folders.photos(tmp_path / "photos")
    own = ("model.hidden_size=64", "model.num_layers=1", "training.batch_size=2")
    found, said = estimated(capsys, "photos", "--minutes", 3, "--size", 16, *own)
    assert found["seconds"] == 180
    assert "looking at the pictures in photos" in said
    (model,) = [line for line in said.splitlines() if line.startswith("model: ")]
    assert f"{found['parameters'] / 1e6:.1f}M parameters, 16 x 16 pixels" in model
    assert not (tmp_path / "outputs").exists()


def test_of_a_run_it_is_its_own_configuration(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure_here(monkeypatch)
    trainer = trained(tiny_config())
    for place in (trainer.folder, trainer.folder / "checkpoint-6"):
        found, _ = estimated(capsys, place)
        assert found["steps"] == 6
        assert found["parameters"] == sum(p.numel() for p in trainer.model.parameters())
    found, _ = estimated(capsys, trainer.folder, "--minutes", 2, "training.max_steps=null")
    assert found["seconds"] == 120


def test_two_configurations_are_one_too_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", str(tmp_path), "--config", "tiny"]) == 2
    assert "use only one of them" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--full"]])
def test_in_latent_space_the_cache_is_counted_and_nothing_is_encoded(
    flags: list[str],
    tiny_config: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measure_here(monkeypatch)
    vae = pretrained.tiny_autoencoder(tmp_path / "vae")
    text = pretrained.tiny_clip(tmp_path / "clip")
    config = tiny_config(
        "model.patch_size=2",
        f"vae.pretrained_model_name='{vae}'",
        f"text_encoder.pretrained_model_name='{text}'",
        "text_encoder.max_length=null",
        f"cache.folder='{tmp_path / 'cache'}'",
    )
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), "utf-8")
    assert main(["estimate", str(path), "--json", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    latents, captions = 24 * 4 * 4 * 4 * 2, 48 * 25 * 16 * 2  # numbers of two bytes
    assert found["cache"] == pytest.approx(latents + captions, rel=0.1)
    assert found["seconds_to_encode"] > 0
    assert not (tmp_path / "cache").exists()


def test_what_cannot_run_says_why(tiny_config: Build, tmp_path: Path, short: None) -> None:
    config = tiny_config(
        "data.dataset_name=null", "data.num_samples=null", f"data.dataset_path='{tmp_path}/none'"
    )
    with pytest.raises(LimnerError, match=r"a short run of this configuration failed: .*none"):
        estimate(config)


def measured(batch_size: int, **values: float) -> dict[str, Any]:
    return {"batch_size": batch_size, **values}


def test_two_measurements_give_what_is_fixed_and_what_a_picture_adds() -> None:
    small, large = measured(8, peak_bytes=1000.0), measured(16, peak_bytes=1400.0)
    assert line(small, large, "peak_bytes") == (600, 50)
    assert line(large, large, "peak_bytes") == (1400, 0)  # a batch of one: nothing to compare
    assert line(measured(1, peak_bytes=9.0), measured(2, peak_bytes=8.0), "peak_bytes") == (8, 0)


def test_advice_keeps_the_effective_batch(tiny_config: Build) -> None:
    settings = ["training.batch_size=24", "training.gradient_accumulation_steps=2"]
    config = tiny_config(*settings, "training.mixed_precision=bf16")
    assert advise(config, GIB, GIB / 100, 2 * GIB) == []
    (said,) = advise(config, GIB, GIB / 10, 2 * GIB)  # 0.8 GiB of room: eight pictures
    assert "training.batch_size=8 training.gradient_accumulation_steps=6 fits" in said
    assert "the same effective batch of 48" in said
    both = advise(config, GIB, GIB / 10, 2 * GIB, (GIB, GIB / 40))
    assert "gradient_checkpointing=true brings the peak to 1.60 GiB, which is enough" in both[0]
    (none,) = advise(config, 3 * GIB, GIB, 2 * GIB)
    assert "even a batch of one picture needs 4.00 GiB" in none


def test_the_length_of_a_run_is_counted_as_the_run_counts_it(tiny_config: Build) -> None:
    def length(*settings: str) -> tuple[int | None, float]:
        base = ["training.max_steps=null", "training.batch_size=10"]
        return length_of(tiny_config(*base, *settings), 95, 0.5)

    assert length("training.num_epochs=2") == (19, 9.5)
    assert length("training.num_epochs=2", "training.gradient_accumulation_steps=2") == (10, 10.0)
    assert length("training.max_steps=7") == (7, 3.5)
    assert length("training.max_minutes=1") == (120, 60)
    assert length("training.max_minutes=1", "training.max_steps=1000") == (1000, 60)
    assert length() == (950, 475.0)


def test_pictures_are_counted_where_they_are_kept(tiny_config: Build) -> None:
    assert images_in_memory(tiny_config(), 100) == 100 * 3 * 16 * 16
    assert images_in_memory(tiny_config("data.memory_mb=0"), 100) == 0
    assert images_in_memory(tiny_config("vae.pretrained_model_name=some/vae"), 100) == 0


@pytest.mark.parametrize(
    ("fits", "free", "asked"),
    [
        (64, 1000, [32, 64]),  # room for all: the batch itself is measured
        (64, 70, [32, 16]),  # twice the memory of half of it would not leave a margin
        (4, 1000, [32, 8, 2, 1]),  # memory runs out, and what follows is extrapolated
    ],
)
def test_a_probe_never_asks_for_more_memory_than_there_is(
    fits: int,
    free: int,
    asked: list[int],
    tiny_config: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []

    def probe(config: Config) -> dict[str, Any]:
        found.append(config.training.batch_size)
        if config.training.batch_size > fits:
            raise MemoryError
        return measured(config.training.batch_size, peak_bytes=config.training.batch_size)

    monkeypatch.setattr(memory_probe, "probe", probe)
    small, large = memory_probe.probe_twice(tiny_config("training.batch_size=64"), free)
    assert found == asked
    assert (small["batch_size"], large["batch_size"]) == tuple(sorted(asked[-2:]))


def test_a_model_that_is_too_large_for_anything_says_so(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(config: Config) -> dict[str, Any]:
        raise MemoryError

    monkeypatch.setattr(memory_probe, "probe", never)
    with pytest.raises(LimnerError, match="not even a batch of one picture fits"):
        memory_probe.probe_twice(tiny_config("training.batch_size=64"), 1000)


def made_up_probe(
    monkeypatch: pytest.MonkeyPatch, free: int, peak: Callable[[Config], int]
) -> None:
    """Every short run is measured like this, on a machine of so many free bytes."""
    counts: dict[str, Any] = dict.fromkeys(
        ("parameters", "denoiser_parameters", "weight_bytes", "trained_bytes", "optimizer_bytes",
         "trained", "held_out", "captions", "checkpoint_bytes"), 10,
    )  # fmt: skip
    counts["captions_cut"] = None
    times = {"seconds_per_step": 1.0, "gflops_per_picture": 1.0, "share_of_matmul_peak": 0.3}

    def probe(config: Config) -> dict[str, Any]:
        size = config.training.batch_size
        assert isinstance(size, int)
        return measured(size, peak_bytes=peak(config), **counts, **times)

    def probe_quickly(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
        size = config.training.micro_batch_size
        return probe(with_training(config, batch_size=max(1, size // 2))), probe(config)

    monkeypatch.setattr(memory_probe, "probe", probe)
    monkeypatch.setattr(estimates, "probe_quickly", probe_quickly)
    monkeypatch.setattr(estimates, "free_memory", lambda device: free)


@pytest.mark.parametrize(
    ("batch", "each", "said"),
    [
        (8, 2**20, "activations 8 MiB for 8 pictures at a time, the rest"),
        (8, 2**16, "activations of 8 pictures at a time raise the peak by less than 1 MiB, the re"),
        (8, 0, "activations of 8 pictures at a time raise the peak by less than 1 MiB, the rest"),
        (8, -(2**20), "activations of 8 pictures at a time raise the peak by less than 1 MiB"),
        (1, 2**20, "activations of 1 picture at a time and the rest together"),
    ],
)
def test_activations_that_cannot_be_measured_are_not_called_nothing(
    batch: int, each: int, said: str, tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peak(config: Config) -> int:
        return 100 * 2**20 + each * int(config.training.batch_size)

    made_up_probe(monkeypatch, 2**33, peak)
    words = "\n".join(estimate(tiny_config(f"training.batch_size={batch}")).lines())
    assert said in words
    assert "activations 0" not in words


def test_where_one_picture_alone_was_measured_the_peak_is_called_that_of_one(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peak(config: Config) -> int:
        if config.training.batch_size != 1:
            raise MemoryError
        return 1000

    made_up_probe(monkeypatch, 1400, peak)
    found = estimate(tiny_config("training.batch_size=8", "data.memory_mb=0"), full=True)
    assert "only a batch of one picture was measured; a batch of 8 needs more" in "".join(
        found.notes
    )
    alone = estimate(tiny_config("training.batch_size=1", "data.memory_mb=0"), full=True)
    assert "at a time" not in "".join(alone.notes)


@pytest.mark.parametrize("full", [False, True])
def test_where_memory_is_short_gradient_checkpointing_is_measured_too(
    full: bool, tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peak(config: Config) -> int:
        each = 10 if config.training.gradient_checkpointing else 100
        return 1000 + each * int(config.training.batch_size)

    made_up_probe(monkeypatch, 1400, peak)
    found = estimate(tiny_config("training.batch_size=64", "data.memory_mb=0"), full)
    assert found.peak == 1000 + 100 * 64
    assert "gradient_checkpointing=true brings the peak" in found.advice[0]
    assert "training.batch_size=2 training.gradient_accumulation_steps=32 fits" in found.advice[1]


def test_the_batch_size_that_is_chosen_follows_from_the_same_measurement(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up_probe(monkeypatch, 2000, lambda config: 1000 + 100 * int(config.training.batch_size))
    found = estimate(tiny_config("training.batch_size=auto", "data.memory_mb=0"))
    assert (found.batch_size, found.peak) == (8, 1800)  # 0.9 of 2000 bytes
    whole = "training.effective_batch_size=12"
    found = estimate(tiny_config("training.batch_size=auto", whole, "data.memory_mb=0"))
    assert (found.batch_size, found.effective_batch) == (4, 12)


class Machine:
    """A clock, and updates that take and hold so much: a second and 100 bytes a picture, and a
    second for the weights."""

    max_grad_norm, scaler = 1.0, None

    def __init__(self, free: int, pieces_from: int = 10**9) -> None:
        self.free, self.pieces_from, self.now, self.peak = free, pieces_from, 0.0, 1000
        self.state = SimpleNamespace(pieces=1)

    def gradients_within_memory(self, batches: list[Any], progress: float) -> None:
        (size,) = batches
        self.now += size
        self.peak = max(self.peak, 1000 + 100 * size)
        self.state.pieces = 2 if size >= self.pieces_from else 1

    def change_weights(self) -> None:
        self.now += 1

    def forget_gradients(self) -> None:
        pass

    def measured(self, batch_size: int, seconds: float, patch: pytest.MonkeyPatch) -> list[Any]:
        model = torch.nn.Linear(1, 1)
        run = SimpleNamespace(
            device=SimpleNamespace(type="cpu"), state=self.state, train_step=self, model=model,
            update_ema=lambda: None,
        )  # fmt: skip
        patch.setattr(quick_probe, "examples_of", lambda run: range(10**6))
        patch.setattr(quick_probe.Batch, "of", len)
        patch.setattr(quick_probe, "peak_bytes", lambda device: self.peak)
        patch.setattr(quick_probe, "free_memory", lambda device: self.free)
        patch.setattr(quick_probe.time, "perf_counter", lambda: self.now)
        trainer: Any = SimpleNamespace(run=run, model=model)
        found = quick_probe.updates(trainer, batch_size, seconds)
        assert {one.change for one in found} == {1}
        return [(one.pictures, one.gradients, one.peak) for one in found]


def test_more_and_more_pictures_are_measured_up_to_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = Machine(10**9).measured(12, 1e9, monkeypatch)
    assert found == [(n, n, 1000 + 100 * n) for n in (1, 4, 12)]


def test_measuring_ends_in_its_time_but_not_before_two_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(10**9)
    found = machine.measured(256, 60, monkeypatch)
    assert [size for size, *_ in found] == [1, 4, 16]
    assert machine.now <= 60
    with pytest.MonkeyPatch.context() as patch:
        assert [size for size, *_ in Machine(10**9).measured(256, 0, patch)] == [1, 4]


def test_measuring_takes_no_more_memory_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(3000)  # seventeen pictures, with the margin
    found = machine.measured(256, 1e9, monkeypatch)
    assert [size for size, *_ in found] == [1, 4, 16]
    with pytest.MonkeyPatch.context() as patch:  # what was done in parts says nothing
        found = Machine(10**9, pieces_from=16).measured(256, 1e9, patch)
        assert [size for size, *_ in found] == [1, 4]


def test_what_is_kept_for_the_backward_pass_is_counted_without_the_weights() -> None:
    trainer: Any = SimpleNamespace(model=torch.nn.Linear(8, 16, bias=False))
    with (kept := quick_probe.Kept(trainer)).counted():
        y = trainer.model(torch.zeros(4, 8, requires_grad=True)).exp()
        z = y * y
    assert kept.bytes == 4 * (4 * 8 + 4 * 16)  # the input, and y once
    z.sum().backward()
    assert trainer.model.weight.grad is not None


def updates_of(*sizes: int, peak: Callable[[int], int]) -> list[quick_probe.Measured]:
    return [quick_probe.Measured(n, n, n % 3, peak(n), 80 * n) for n in sizes]


def test_a_larger_batch_follows_from_the_last_two_sizes() -> None:
    expected, compiler = quick_probe.expected, quick_probe.COMPILER
    found = updates_of(1, 4, 8, peak=lambda n: 1000 + 100 * n)
    change = (1 + 1 + 2) / 3  # of all, as some updates take longer than others
    assert expected(found, 64, False, True) == (64 + change, 1000 + 100 * 64)
    assert expected(found, 64, False, True, accumulation=4)[0] == 64 + change / 4
    step, peak = expected(found, 64, True, False)
    assert step == pytest.approx(64 / 1.1 + change)
    assert peak == 1000 + 56 * 64  # by what is kept, which is more than half of the growth
    assert expected(found, 8, True, True)[1] == 1000 + compiler
    assert expected(found, compiler, True, True)[1] == 1000 + compiler // 2 + 56 * compiler
    assert expected(found[-1:], 8, False, True) == (8 + 2, 1800)


def test_what_an_earlier_peak_hides_is_expected_nevertheless() -> None:
    flat = updates_of(4, 8, peak=lambda n: 5000)
    assert quick_probe.expected(flat, 64, False, True)[1] == 5000 + 80 * 64


def test_a_machine_that_others_use_is_told(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_here(monkeypatch)
    for shared, told in ((Shared(0.3, 0.6, 2), True), (None, False)):
        monkeypatch.setattr(quick_probe.MachineShare, "look", lambda self, shared=shared: shared)
        notes = estimate(tiny_config("training.batch_size=2")).notes
        assert any("other programs use 60%" in n and "as busy as" in n for n in notes) is told


def test_captions_that_are_cut_are_told(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_here(monkeypatch)
    config = tiny_config("text_encoder.max_length=5", "training.batch_size=2")
    (said,) = (note for note in estimate(config).notes if "captions" in note)
    assert re.match(r"\d+ of \d+ captions are longer than the 5 tokens of text_encoder", said)
    assert "text_encoder.max_length=" in said
    whole = estimate(tiny_config("text_encoder.max_length=64", "training.batch_size=2"))
    assert not any("captions" in note for note in whole.notes)
