"""A resumed run is the same run: N steps = k steps + resume + (N - k), to the bit."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compared_runs import contents, differing, elsewhere, logged, run

from limner.checkpoint.folder import load_tensors
from limner.checkpoint.locate import checkpoints
from limner.config import Config
from limner.errors import LimnerError
from limner.training.monitor.run_log import read_log
from limner.training.trainer import Trainer

EVERYTHING_RANDOM = [
    "training.batch_size=2",
    "training.gradient_accumulation_steps=2",
    "training.caption_dropout=0.3",
    "model.dropout=0.2",
    "data.horizontal_flip=0.5",
    "training.num_workers=2",
]
RUNS = {
    "float32": [],
    "bfloat16": ["training.mixed_precision=bf16"],
    # Has a loss scale to remember; nearly clean pictures, where the picture is predicted, have
    # gradients that overflow it.
    "float16": [
        "training.mixed_precision=fp16",
        "scheduler.prediction_type=sample",
        "scheduler.logit_mean=2",
    ],
    "published": [
        "model.architecture=dit",
        "optimizer.type=adamw",
        "scheduler.prediction_type=v_prediction",
    ],
    "no average": ["training.use_ema=false"],
    "odd logging": ["training.logging_steps=2"],
}


SLOW_RUN = """
import sys, time, torch
from limner import Trainer, load_config
torch.set_num_threads(1)
trainer = Trainer(load_config(sys.argv[1]))
step = trainer.step
trainer.step = lambda: time.sleep(0.1) or step()
trainer.train()
"""


def losses(folder: Path) -> list[dict[str, Any]]:
    return [event for event in logged(folder) if event["kind"] == "train"]


@pytest.mark.usefixtures("float16_here")
@pytest.mark.parametrize("kind", RUNS)
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    kind: str, tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config(*EVERYTHING_RANDOM, *RUNS[kind])
    whole = run(elsewhere(config, "whole"))
    broken = run(config, steps=4)
    assert [c.name for c in checkpoints(broken)] == ["checkpoint-3"]
    assert max(event["step"] for event in logged(broken)) >= 3
    run(config, resume="latest")
    assert differing(whole / "checkpoint-3", broken / "checkpoint-3") == []
    assert differing(whole / "checkpoint-6", broken / "checkpoint-6") == []
    assert logged(broken) == logged(whole)
    assert len({event["loss"] for event in losses(whole)}) >= 4
    if kind == "float16":  # was found to be too large and halved, which must not be forgotten
        assert contents(broken / "checkpoint-3")["/optimizer/scaler/scale"] < 2**16


def test_a_run_goes_on_with_other_workers_from_a_named_checkpoint_in_another_folder(
    tiny_config: Callable[..., Config],
) -> None:
    config = tiny_config(*EVERYTHING_RANDOM)
    whole = run(config)
    for name, workers in (("none", 0), ("one", 1)):
        moved = elsewhere(config, name, num_workers=workers)
        folder = run(moved, resume=whole / "checkpoint-3")
        assert differing(whole / "checkpoint-6", folder / "checkpoint-6") == []
        assert logged(folder) == [event for event in logged(whole) if event["step"] > 3]


def test_a_killed_process_leaves_a_run_that_can_go_on(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config("training.max_steps=24")
    whole = run(elsewhere(config, "whole"))
    folder = Path(config.training.output_dir)
    folder.mkdir()
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, str(folder / "config.yaml")], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not checkpoints(folder) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() != 0
    assert 3 <= int(checkpoints(folder)[-1].name.partition("-")[2]) < 24
    run(config, resume="latest")
    assert differing(whole / "checkpoint-24", folder / "checkpoint-24") == []
    assert logged(folder) == logged(whole)


def test_micro_batches_add_up_to_the_same_update(tiny_config: Callable[..., Config]) -> None:
    # Without Muon, which makes a full step of a gradient that is rounding alone.
    settings = ["training.max_steps=3", "training.caption_dropout=0.3", "optimizer.type=adamw"]
    settings.append("model.dropout=0.2")  # whose masks are the pictures', not the batch's
    whole = tiny_config(*settings, "training.batch_size=8")
    halves = elsewhere(whole, "halves", batch_size=4, gradient_accumulation_steps=2)
    a, b = run(whole), run(halves)
    for first, second in zip(losses(a), losses(b), strict=True):
        assert second["images"] == first["images"]
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)
    weights, other = (load_tensors(f / "checkpoint-3" / "model.pt") for f in (a, b))
    for name, tensor in weights.items():
        torch.testing.assert_close(other[name], tensor, atol=2e-5, rtol=1e-4)


def test_a_run_can_be_made_longer(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config()
    folder = run(config)
    run(elsewhere(config, "run", max_steps=8), resume="latest")
    assert [c.name for c in checkpoints(folder)] == [f"checkpoint-{n}" for n in (3, 6, 8)]
    assert [event["step"] for event in losses(folder)] == list(range(1, 9))


def test_resuming_a_finished_run_says_so_and_changes_nothing(
    tiny_config: Callable[..., Config],
) -> None:
    config = tiny_config()
    folder = run(config)
    before = {path: path.read_bytes() for path in (folder / "checkpoint-6").iterdir()}
    run(config, resume="latest")
    assert {path: path.read_bytes() for path in (folder / "checkpoint-6").iterdir()} == before
    assert "nothing to do" in read_log(folder / "log.jsonl")[-1]["message"]


def test_settings_of_the_optimizer_can_change_on_resume(tiny_config: Callable[..., Config]) -> None:
    # At every update: the first direction of a matrix whose gradient is still zero is zero, and a
    # lazy Muon keeps it for a few of these six updates, in which what lies behind learns nothing.
    eager = "optimizer.muon_period=1"
    run(tiny_config(eager))
    changed = tiny_config(eager, "optimizer.weight_decay=0.25", "optimizer.muon_momentum=0.5")
    trainer = Trainer(changed, resume="latest")
    muon = trainer.run.optimizers["muon"]
    assert {g["weight_decay"] for g in muon.param_groups} == {0.25}
    assert {g["momentum"] for g in muon.param_groups} == {0.5}
    assert all(state["momentum"].any() for state in muon.state.values())


def test_the_same_command_goes_on(tiny_config: Callable[..., Config]) -> None:
    whole = run(elsewhere(tiny_config(), "whole"))
    folder = run(tiny_config(), steps=4)
    # What nothing learned depends on may change.
    run(tiny_config("training.num_workers=1", "training.logging_steps=1", "data.memory_mb=0"))
    assert differing(whole / "checkpoint-6", folder / "checkpoint-6") == []
    assert logged(folder) == logged(whole)


def test_two_runs_do_not_share_a_folder(tiny_config: Callable[..., Config]) -> None:
    run(tiny_config())
    with pytest.raises(LimnerError) as error:
        Trainer(tiny_config("training.learning_rate=2e-3", "data.horizontal_flip=0.5"))
    said = str(error.value)
    assert "checkpoint-6 belongs to an earlier run with other settings" in said
    assert "training.learning_rate: 0.004 in the checkpoint, 0.002 in this run" in said
    assert "data.horizontal_flip: 0.0 in the checkpoint, 0.5 in this run" in said
    assert "--resume latest" in said
    with pytest.raises(
        LimnerError, match=r"checkpoint-6 belongs to an earlier run; .*--resume latest"
    ):
        Trainer(tiny_config("training.resume=no"))
    with pytest.raises(
        LimnerError, match=r"checkpoint-6 belongs to an earlier run; .*--resume latest"
    ):
        Trainer(tiny_config(), resume="no")


def test_what_cannot_be_resumed_says_why(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(LimnerError, match="--resume latest: no checkpoint in"):
        Trainer(tiny_config(), resume="latest")
    with pytest.raises(LimnerError, match=r"no checkpoint at .*nowhere"):
        Trainer(tiny_config(), resume=tmp_path / "nowhere")
    run(tiny_config())
    with pytest.raises(LimnerError) as error:
        Trainer(tiny_config("model.num_layers=3", "text_encoder.max_length=16"), resume="latest")
    assert "model.num_layers: 2 in the checkpoint, 3 in the configuration" in str(error.value)
    assert "text_encoder.max_length: 24 in the checkpoint, 16" in str(error.value)
    assert "hidden_size" not in str(error.value)
    with pytest.raises(LimnerError, match=r"optimizer\.type is 'muon' in the checkpoint"):
        Trainer(tiny_config("optimizer.type=adamw"), resume="latest")
