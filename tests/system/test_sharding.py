"""A model in shards learns what a whole one learns, and its checkpoints are anyone's."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Run, leaves, run_in, same
from runs import events, messages, trained
from safetensors.torch import load_file

from limner.checkpoint.folder import Checkpoint, load_tensors
from limner.checkpoint.locate import checkpoints, newest_good
from limner.checkpoint.sharded import read_shards
from limner.config import Config, load_config
from limner.distributed.fsdp import forget_notes, note_pieces, noted_pieces
from limner.errors import LimnerError
from limner.training.trainer import Trainer

FSDP = "training.sharding=fsdp"
EIGHT = [
    "training.effective_batch_size=8",
    "training.caption_dropout=0.3",
    "model.dropout=0.1",
    "optimizer.type=adamw",  # Muon makes a full step of a gradient that is rounding alone
]
DIT = ["model.architecture=dit", "text_encoder.num_layers=2"]
OWN = [FSDP, "training.checkpoint_shards=true"]
MUON = ["optimizer.type=muon", "optimizer.muon_period=2"]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}

Configured = Callable[..., Config]


@pytest.fixture
def config(tiny_config: Configured, tmp_path: Path) -> Configured:
    """config(name, processes, overrides): a run into a folder of that name."""

    def build(name: str, processes: int, *overrides: str) -> Config:
        size = f"training.batch_size={8 // processes}"
        return tiny_config(*EIGHT, f"training.output_dir='{tmp_path / name}'", size, *overrides)

    return build


def contents(checkpoint: Path) -> dict[str, Any]:
    """Every tensor and number of a checkpoint, by name."""
    return leaves(
        {
            "model": load_tensors(checkpoint / "model.pt"),
            "averaged": load_file(checkpoint / "ema.safetensors"),
            "optimizers": load_tensors(checkpoint / "optimizer.pt"),
        }
    )


def assert_close(found: Path, expected: Path) -> None:
    one, other = contents(expected), contents(found)
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            said = functools.partial("{}: {}".format, name)
            torch.testing.assert_close(other[name], value, **CLOSE, msg=said)


def assert_same_whole(shards: Path, files: Path) -> None:
    """A checkpoint in shards reads as the one of whole files, to the bit."""
    assert {path.name for path in shards.iterdir()} == {
        *(f"shard-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)),
        *("shards.json", "training_state.json", "config.yaml", "tokenizer.json"),
        *("words.json", "rows.npy", "lineage.json", "manifest.json"),
    }
    opened = Checkpoint.open(shards)
    found = leaves(
        {
            "model": opened.tensors(averaged=False),
            "averaged": opened.tensors(averaged=True),
            "optimizers": read_shards(shards, "optimizers"),
        }
    )
    expected = contents(files)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not same(found[name], expected[name])] == []


def assert_damage_is_seen(run: Path, copy: Path) -> None:
    """In a shard that changed, and in a checkpoint of which one is gone."""
    shutil.copytree(run, copy)
    shard = copy / "checkpoint-6" / "shard-00003-of-00004.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(LimnerError, match=r"shard-00003-of-00004\.safetensors is not what was"):
        Checkpoint.open(copy / "checkpoint-6").tensors()
    shard.unlink()
    found, passed_over = newest_good(copy)
    assert found == copy / "checkpoint-3"
    assert "shard-00003-of-00004.safetensors cannot be read" in passed_over[0]


def logged(folder: Path, kind: str) -> list[float]:
    return [event["loss"] for event in events(folder, kind)]


def test_four_shards_learn_what_one_process_learns_and_go_on_anywhere(
    config: Configured, tmp_path: Path
) -> None:
    modern, dit = trained(config("modern", 1)), trained(config("dit", 1, *DIT))
    muon = trained(config("muon", 1, *MUON))
    rounded = trained(config("rounded", 1, "training.mixed_precision=bf16"))
    middle = tmp_path / "modern4" / "checkpoint-3"
    said = run_in(
        4,
        Run(config("modern4", 4, FSDP), fault="saved_again"),
        Run(config("dit4", 4, FSDP, *DIT)),
        Run(config("muon4", 4, FSDP, *MUON), fault="muon_in_shards"),
        Run(config("rounded4", 4, FSDP, "training.mixed_precision=bf16")),
        Run(config("again", 4, FSDP), resume=middle),
        Run(config("skipped4", 4, FSDP), fault="nan_in_one"),
        Run(config("own", 4, *OWN)),
        Run(config("own_again", 4, *OWN), resume=tmp_path / "own" / "checkpoint-3"),
        Run(config("no_room", 4, *OWN), fault="no_room_once"),
    )
    for one in (modern, dit):
        four = one.folder.with_name(f"{one.folder.name}4")
        for step in (3, 6):
            assert_close(four / f"checkpoint-{step}", one.folder / f"checkpoint-{step}")
        for kind in ("train", "heldout"):
            assert logged(four, kind) == pytest.approx(logged(one.folder, kind), rel=1e-4)
    # Muon rounds to bfloat16, where the processor has it; its own parity is in muon_in_shards. In
    # bf16 the norms' weights and the blocks' modulation are rounded, too, on their way.
    for one, much in ((muon, 1e-3), (rounded, 2e-2)):
        four = one.folder.with_name(f"{one.folder.name}4")
        assert logged(four, "train") == pytest.approx(logged(one.folder, "train"), rel=much)

    # The same number of processes: to the bit; and what Trainer.save_checkpoint writes is it, too.
    end = contents(tmp_path / "modern4" / "checkpoint-6")
    for folder in ("again/checkpoint-6", "modern4/final"):
        other = contents(tmp_path / folder)
        assert [n for n in end.keys() | other.keys() if not same(end.get(n), other.get(n))] == []

    # An update whose loss was no number in one of them is left out by all.
    skipped = tmp_path / "skipped4"
    left_out = [event["step"] for event in events(skipped, "train") if event["loss"] is None]
    assert left_out == [3]
    saved = contents(skipped / "checkpoint-6").values()
    assert all(t.isfinite().all() for t in saved if isinstance(t, torch.Tensor))

    # Only the main process says anything.
    assert said.count("0.2M parameters on") == 8

    # Each process can write its part, which reads as the whole.
    for name in ("own", "own_again"):
        assert_same_whole(tmp_path / name / "checkpoint-6", tmp_path / "modern4" / "checkpoint-6")
    assert_damage_is_seen(tmp_path / "own", tmp_path / "damaged")
    assert [path.name for path in checkpoints(tmp_path / "no_room")] == ["checkpoint-6"]
    assert not list((tmp_path / "no_room").glob(".checkpoint*"))
    (told,) = [m for m in messages(tmp_path / "no_room") if "could not be written" in m]
    assert "checkpoint-3 could not be written (another process could not write its part" in told

    # Saved by four in shards, gone on from by one, by two in shards, and by two without.
    Trainer(config("by1", 1), resume=middle).train()
    Trainer(config("own1", 1), resume=tmp_path / "own" / "checkpoint-3").train()
    run_in(2, Run(config("by2", 2, FSDP), resume=middle), Run(config("whole2", 2), resume=middle))
    for name in ("by1", "own1", "by2", "whole2"):
        assert_close(tmp_path / name / "checkpoint-6", modern.folder / "checkpoint-6")


def test_short_memory_in_one_of_them_halves_all_at_the_next_start(
    config: Configured, tmp_path: Path
) -> None:
    one = trained(config("one", 1)).folder
    said = run_in(2, Run(config("two", 2, FSDP), fault="short_of_memory"), restarts=1)
    assert "injected: out of memory), in the middle of" in said
    assert "each micro-batch is split into 2 parts" in messages(tmp_path / "two")
    assert_close(tmp_path / "two" / "checkpoint-6", one / "checkpoint-6")
    assert not list((tmp_path / "two").glob("short-of-memory*"))


def test_notes_of_short_memory(tmp_path: Path) -> None:
    assert noted_pieces(tmp_path, 8) == 1
    note_pieces(tmp_path, 0, 8, 2)
    note_pieces(tmp_path, 3, 8, 4)
    assert noted_pieces(tmp_path, 8) == 4
    assert noted_pieces(tmp_path, 4) == 1  # of another micro-batch it says nothing
    (tmp_path / "short-of-memory-5.json").write_text("[", encoding="utf-8")
    assert noted_pieces(tmp_path, 8) == 4
    forget_notes(tmp_path)
    assert noted_pieces(tmp_path, 8) == 1


@pytest.mark.parametrize(
    ("key", "reason"),
    [("training.batch_size=auto", "set a number"), ("training.mixed_precision=fp16", "bf16")],
)
def test_what_shards_cannot_do_is_said(key: str, reason: str) -> None:
    load_config(None, [FSDP])
    load_config(None, [key])
    with pytest.raises(LimnerError, match=reason):
        load_config(None, [FSDP, key])
    with pytest.raises(LimnerError, match=r"only valid with training\.sharding"):
        load_config(None, ["training.checkpoint_shards=true"])


def test_one_process_holds_the_whole_whatever_is_asked(config: Configured) -> None:
    plain, asked = trained(config("plain", 1)), trained(config("asked", 1, FSDP))
    a, b = (contents(t.folder / "checkpoint-6") for t in (plain, asked))
    assert all(same(a[name], b[name]) for name in a)
