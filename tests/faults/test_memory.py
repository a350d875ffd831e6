"""Memory that runs out: forward, backward, optimizer, held-out loss, preview, save."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compared_runs import differing, elsewhere, run
from runs import events, messages

from limner import memory
from limner.checkpoint import saver
from limner.checkpoint.folder import Contents, load_tensors
from limner.checkpoint.locate import checkpoints
from limner.config import Config, load_config
from limner.errors import LimnerError
from limner.inference import sampling
from limner.memory import in_parts_that_fit, is_out_of_memory, job_limits
from limner.models.dropout import ImageDropout, keep_mask, seed_dropout
from limner.models.size import check_memory
from limner.training import batch_size
from limner.training.batch_size import settle_batch
from limner.training.monitor import heldout, monitor, previews
from limner.training.saving import contents_of
from limner.training.trainer import Trainer

Build = Callable[..., Config]
OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
PROCESSOR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
)
# Without Muon, which makes a full step of a gradient that is rounding alone.
SETTINGS = ("optimizer.type=adamw", "training.batch_size=8", "model.dropout=0.2")


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("memory_", "memory.")).write_text(f"{text}\n")


def test_a_job_has_no_more_memory_than_it_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc, mounted = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    listed = proc / "self" / "cgroup"

    def limits() -> list[tuple[int, int]]:
        return job_limits(proc, mounted)

    assert limits() == [], "another system"
    # Version 2: a step of a job of Slurm's, the inner group without a limit of its own.
    listed.write_text("0::/slurm/job_7/step_0\n")
    stat = "anon 100\ninactive_file 300\nactive_file 50"
    group(mounted / "slurm" / "job_7", memory_max=4000, memory_current=1000, memory_stat=stat)
    group(mounted / "slurm" / "job_7" / "step_0", memory_max="max", memory_current=900)
    assert limits() == [(4000, 700)]
    # Version 1, in a container that sees its own group at the root.
    mounted = tmp_path / "cgroup1"
    listed.write_text("9:name=systemd:/\n4:memory:/docker/ab12\n2:cpu,cpuacct:/\n0::/\n")
    limit, used = {"memory_limit_in_bytes": 2000}, {"memory_usage_in_bytes": 500}
    group(mounted / "memory", **limit, **used, memory_stat="total_inactive_file 100")
    assert limits() == [(2000, 400)]

    monkeypatch.setattr(memory, "job_limits", limits)
    assert memory.free_memory(torch.device("cpu")) == 1600
    assert memory.whole_memory() == 2000
    with pytest.raises(LimnerError, match=r"\(or the job on it\) has 0\.0 GiB"):
        check_memory(load_config(None), 4096)
    group(mounted / "memory" / "docker" / "ab12", **limit, memory_usage_in_bytes=2100,
          memory_stat="total_inactive_file 0")  # fmt: skip
    assert memory.free_memory(torch.device("cpu")) == 0, "not less than nothing"


def close(first: Path, second: Path) -> None:
    """Equal to rounding: 2e-5 or one part in 10,000."""
    one, other = (load_tensors(folder / "checkpoint-6" / "model.pt") for folder in (first, second))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("error", [OUT, PROCESSOR, MemoryError()])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_step_is_taken_again_in_smaller_parts(
    where: str, error: Exception, tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(*SETTINGS)
    whole = run(elsewhere(config, "whole"))
    trainer = Trainer(config)
    sizes: list[int] = []

    def full(size: int) -> bool:  # room for three pictures at a time from the third step on
        return trainer.state.step >= 2 and size > 3

    loss = trainer.run.train_step.loss

    def measured(batch: Any, timesteps: torch.Tensor) -> torch.Tensor:
        if where == "forward" and full(len(batch)):
            raise error
        sizes.append(len(batch))
        losses = loss(batch, timesteps)
        if where == "backward" and full(len(batch)):
            losses.register_hook(_raise(error))
        return losses

    monkeypatch.setattr(trainer.run.train_step, "loss", measured)
    trainer.train()
    assert [size for size in sizes if size <= 3] == [2] * 16  # four steps of four parts
    assert trainer.state.pieces == 4
    said = [m for m in messages(trainer.folder) if "out of memory at step 3" in m]
    assert ["the micro-batch is now 4" in said[0], "the micro-batch is now 2" in said[1]] == [
        True
    ] * 2
    close(whole, trainer.folder)
    for one, other in zip(events(whole, "train"), events(trainer.folder, "train"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["images"] == one["images"]
    # Resumed, it goes on in the same parts, to the bit.
    (trainer.folder / "checkpoint-6").rename(trainer.folder / "gone")
    again = Trainer(config)
    again.train()
    assert differing(trainer.folder / "gone", trainer.folder / "checkpoint-6") == []


def _raise(error: Exception) -> Callable[[torch.Tensor], None]:
    def hook(_: torch.Tensor) -> None:
        raise error

    return hook


def test_another_error_is_not_taken_for_short_memory(tiny_config: Build) -> None:
    trainer = Trainer(tiny_config())
    trainer.run.train_step.loss = lambda batch, _: _raise(RuntimeError("shapes do not fit"))(
        batch.u
    )  # type: ignore
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        trainer.train()
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert not is_out_of_memory(OSError("out of memory cards"))


def test_not_even_one_picture(tiny_config: Build) -> None:
    trainer = Trainer(tiny_config())
    trainer.run.train_step.loss = lambda batch, _: _raise(OUT)(batch.u)  # type: ignore
    with pytest.raises(LimnerError, match=r"with a batch of one picture .*gradient_checkpointing"):
        trainer.train()


@pytest.mark.parametrize("at", [2, 4])
def test_memory_that_runs_out_in_the_optimizer(at: int, tiny_config: Build) -> None:
    """Some weights are changed, others not: what followed the last checkpoint is done again."""
    config = tiny_config(*SETTINGS)
    whole = run(elsewhere(config, "whole"))
    trainer = Trainer(config)
    (optimizer,) = trainer.run.optimizers.values()
    step, failures = optimizer.step, []

    def half(*_: Any) -> None:
        if trainer.state.step == at and not failures:
            failures.append(at)
            with torch.no_grad():
                next(trainer.model.parameters()).add_(1.0)
            raise OUT
        step()

    optimizer.step = half  # type: ignore[method-assign]
    trainer.train()
    assert failures == [at]
    assert differing(whole / "checkpoint-6", trainer.folder / "checkpoint-6") == []
    assert [e["step"] for e in events(trainer.folder, "train")] == [1, 2, 3, 4, 5, 6]
    assert any("repeating the steps after step" in message for message in messages(trainer.folder))


def test_memory_that_runs_out_there_twice_ends_the_run(tiny_config: Build) -> None:
    trainer = Trainer(tiny_config(*SETTINGS))
    (optimizer,) = trainer.run.optimizers.values()
    step = optimizer.step

    def fails(*_: Any) -> None:
        if trainer.state.step == 4:
            raise OUT
        step()

    optimizer.step = fails  # type: ignore[method-assign]
    with pytest.raises(LimnerError, match=r"twice in the optimizer update of step 5"):
        trainer.train()
    assert [c.name for c in checkpoints(trainer.folder)] == ["checkpoint-3"]


def test_held_out_loss_and_preview_shrink(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*SETTINGS, "training.preview_steps=3", "training.preview_prompts=[a, b, c, d, e]"]
    whole = run(elsewhere(tiny_config(*settings), "whole"))
    by_level, draw, drawn = heldout.loss_by_level, sampling.draw, []

    def measure(model: Any, objective: Any, grid: Any, batch_size: int, device: Any) -> Any:
        if batch_size > 2:
            raise PROCESSOR
        return by_level(model, objective, grid, batch_size, device)

    def draw_few(model: Any, objective: Any, words: Any, prompts: Any, *rest: Any) -> Any:
        if len(prompts) > 2:
            raise OUT
        drawn.append(len(prompts))
        return draw(model, objective, words, prompts, *rest)

    monkeypatch.setattr(monitor, "loss_by_level", measure)
    monkeypatch.setattr(previews, "draw", draw_few)
    folder = run(tiny_config(*settings))
    assert drawn == [2, 2, 1] * 2
    assert differing(whole / "checkpoint-6", folder / "checkpoint-6") == []
    for one, other in zip(events(whole, "heldout"), events(folder, "heldout"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_a_preview_that_does_not_fit_at_all_is_left_out(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(previews, "draw", lambda *_: _raise(OUT)(torch.ones(1)))
    folder = run(tiny_config("training.preview_steps=3"))
    assert (folder / "checkpoint-6").is_dir()
    said = [m for m in messages(folder) if "the preview was not drawn" in m]
    assert len(said) == 2
    assert "training continues" in said[0]


def test_no_room_for_a_copy_saves_without_one(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(elsewhere(tiny_config(), "whole"))

    def short(_: Contents) -> Contents:
        raise MemoryError

    monkeypatch.setattr(Contents, "copied", short)
    folder = run(tiny_config())
    assert differing(whole / "checkpoint-3", folder / "checkpoint-3") == []
    assert differing(whole / "checkpoint-6", folder / "checkpoint-6") == []


def test_without_a_copy_training_waits_for_the_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Large:
        def copied(self) -> Contents:
            raise MemoryError

    monkeypatch.setattr(saver, "save_checkpoint", lambda folder, contents: time.sleep(0.2))
    with saver.Saver(None, lambda: None, True) as saving:
        saving.save(tmp_path / "checkpoint-1", Large())  # type: ignore[arg-type]
        assert saving.pending is None  # the weights themselves were written


def test_what_is_saved_is_what_was_when_saving_began(tiny_config: Build) -> None:
    trainer = Trainer(tiny_config())
    trainer.batches.restart()
    trainer.step()
    contents = contents_of(trainer.run).copied()
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.step()
    assert all(torch.equal(contents.model[name], before[name]) for name in before)
    assert not all(torch.equal(t, before[n]) for n, t in trainer.model.state_dict().items())
    assert contents.state.images == 0


def test_a_slow_disk_saves_the_weights_of_their_step(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(elsewhere(tiny_config(), "whole"))
    trainer, save = Trainer(tiny_config()), saver.save_checkpoint

    def slow(folder: Path, contents: Contents) -> Path:
        while folder.name == "checkpoint-3" and trainer.state.step < 5:
            time.sleep(0.01)
        return save(folder, contents)

    monkeypatch.setattr(saver, "save_checkpoint", slow)
    trainer.train()
    for name in ("checkpoint-3", "checkpoint-6"):
        assert differing(whole / name, trainer.folder / name) == []


def test_parts_that_fit() -> None:
    tried = []

    def do(size: int) -> int:
        tried.append(size)
        if size > 3:
            raise OUT
        return size

    assert in_parts_that_fit(13, do) == 3
    assert tried == [13, 6, 3]
    with pytest.raises(torch.OutOfMemoryError):
        in_parts_that_fit(4, lambda size: _raise(OUT)(torch.ones(1)))


# training.batch_size: auto


@pytest.mark.parametrize(
    ("whole", "processes", "fits", "batch", "accumulation"),
    [
        (None, 1, 1000, 256, 1),
        (None, 1, 100, 64, 1),
        (None, 1, 1, 1, 1),
        (96, 1, 1000, 32, 3),
        (128, 1, 1000, 128, 1),
        (128, 2, 1000, 64, 1),
        (128, 2, 40, 32, 2),
        (24, 1, 7, 4, 6),
    ],
)
def test_auto_is_the_largest_that_fits(
    whole: int | None,
    processes: int,
    fits: int,
    batch: int,
    accumulation: int,
    tiny_config: Build,
) -> None:
    words = ["training.batch_size=auto"]
    words += [f"training.effective_batch_size={whole}"] if whole else []
    settled = settle_batch(tiny_config(*words), processes, lambda config: fits).training
    assert settled.micro_batch_size == batch
    assert settled.gradient_accumulation_steps == accumulation


def test_an_effective_batch_that_cannot_be_divided_says_so(tiny_config: Build) -> None:
    with pytest.raises(LimnerError, match=r"30 is not a multiple of .*4"):
        settle_batch(
            tiny_config("training.effective_batch_size=32").model_copy(
                update={
                    "training": tiny_config().training.model_copy(
                        update={"effective_batch_size": 30}
                    )
                }
            ),
            1,
        )
    with pytest.raises(LimnerError, match=r"is not a multiple of the number of processes \(3\)"):
        settle_batch(tiny_config("training.effective_batch_size=32"), 3)
    with pytest.raises(LimnerError, match=r"training\.effective_batch_size: 30"):
        tiny_config("training.effective_batch_size=30")


def test_auto_measures_and_a_resumed_run_keeps_what_it_found(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:

    asked: list[int] = []

    def measured(config: Config, sizes: tuple[int, int], free: float) -> Any:
        asked.append(max(sizes))
        about = {"trained": 23, "held_out": 1}
        return [{"peak_bytes": 1e6 + n * 1e5, "batch_size": n} | about for n in sorted(sizes)]

    monkeypatch.setattr(batch_size, "probe_sizes", measured)
    monkeypatch.setattr(batch_size, "free_memory", lambda device: 2.2e6)
    config = tiny_config("training.batch_size=auto")
    folder = run(config, steps=4)
    assert len(asked) == 1
    saved = Trainer(config)
    assert saved.config.training.micro_batch_size == 8  # (0.9 x 2.2 - 1) / 0.1 = 9.8
    assert len(asked) == 1
    saved.train()
    assert [e["images"] for e in events(folder, "train")] == [8, 16, 24, 32, 40, 48]


# Dropout, which must not depend on how a batch is cut


def test_a_mask_belongs_to_the_picture() -> None:
    dropout = ImageDropout(0.25).train()
    x, seeds = torch.ones(6, 50, 40), torch.arange(6, dtype=torch.int32) * 77_777_777
    seed_dropout(dropout, seeds)
    whole = dropout(x)
    parts = []
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        seed_dropout(dropout, seeds[part])
        parts.append(dropout(x[part]))
    assert torch.equal(torch.cat(parts), whole)
    assert whole.unique().tolist() == pytest.approx([0, 4 / 3])
    seed_dropout(dropout, seeds)
    assert not torch.equal(dropout(x, salt=1), whole)
    assert torch.equal(dropout.eval()(x), x)


def test_masks_are_as_good_as_random() -> None:
    seeds = torch.arange(64, dtype=torch.int32)  # as unlike random as seeds can be
    kept = keep_mask(seeds, 20_000, 0.3).float()
    share = kept.mean()
    assert float(share) == pytest.approx(0.7, abs=0.002)  # four deviations are 0.0016
    assert kept.mean(1).std() < 0.005  # of each picture: one deviation is 0.0032
    assert kept.mean(0).std() < 0.07  # of each place: 0.057
    correlation = torch.corrcoef(kept - share)
    assert (correlation - torch.eye(64)).abs().max() < 0.04  # of 2,016 pairs; 5.5 deviations
    neighbours = torch.corrcoef(torch.stack([kept[:, :-1].flatten(), kept[:, 1:].flatten()]))
    assert abs(neighbours[0, 1]) < 0.004
