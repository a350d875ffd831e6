"""How long a run goes on: updates, passes, or minutes."""

import itertools
import json
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from limner.checkpoint.locate import checkpoints
from limner.checkpoint.state import TrainingState
from limner.config import Config
from limner.training import budget as budget_module
from limner.training.budget import Budget
from limner.training.lr_schedule import learning_rate_share
from limner.training.monitor.run_log import read_log
from limner.training.trainer import Trainer


def run_on_a_clock(
    config: Config,
    seconds_per_step: Callable[[int], float],
    monkeypatch: pytest.MonkeyPatch,
    state: TrainingState | None = None,
) -> TrainingState:
    now, state = 0.0, state or TrainingState()
    monkeypatch.setattr(budget_module, "clock", lambda: now)
    one_process: Any = SimpleNamespace(num_processes=1)
    budget = Budget(config, state, one_process, num_rows=50)
    while not budget.finished():
        now += seconds_per_step(state.step)
        budget.step_done(seconds_per_step(state.step))
    return state


def test_a_finished_run_goes_on_with_more_minutes_and_not_without(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bound(minutes: float) -> Config:
        return tiny_config("training.max_steps=null", f"training.max_minutes={minutes}")

    for seconds_per_step in (0.5, 3.0):
        state = run_on_a_clock(bound(2), lambda step, s=seconds_per_step: s, monkeypatch)
        first = state.step
        run_on_a_clock(bound(2), lambda step, s=seconds_per_step: s, monkeypatch, state)
        assert state.step == first
        run_on_a_clock(bound(6), lambda step, s=seconds_per_step: s, monkeypatch, state)
        assert state.seconds == pytest.approx(360, abs=4)
        assert state.step == state.total_steps == pytest.approx(3 * first, abs=4)
        assert state.decay_start is not None
        assert first < state.decay_start


def test_minutes_bound_a_run_and_its_decay_ends_with_them(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = "training.max_steps=null", "training.max_minutes=2", "lr_scheduler.decay_share=0.3"
    config = tiny_config(*bound)

    # The first update compiles, which says nothing about the speed of the others.
    state = run_on_a_clock(config, lambda step: 30.0 if step == 0 else 0.5, monkeypatch)
    assert 110 < state.seconds <= 121
    assert state.step == state.total_steps
    assert state.decay_start is not None
    decay_seconds = 0.5 * (state.step - state.decay_start)
    assert decay_seconds == pytest.approx(0.3 * 120, abs=1.5)

    # One that slows down or speeds up ends in time all the same, its rate all the way down.
    for seconds in (1.0, 0.2):
        other = run_on_a_clock(
            config, lambda step, s=seconds: 0.5 if step < 175 else s, monkeypatch
        )
        assert other.step == other.total_steps
        assert 115 < other.seconds < 125

    # One that is suddenly much too slow stops late by a step or so, its rate all the way down.
    late = run_on_a_clock(config, lambda step: 0.5 if step < 180 else 12.0, monkeypatch)
    assert late.step == late.total_steps
    assert 120 < late.seconds <= 120 + 2 * 12

    # Resumed in the decay, it goes on to the same end if it is as fast.
    half = TrainingState(200, 800, 100.0, total_steps=240, decay_start=168)
    again = run_on_a_clock(config, lambda step: 0.5, monkeypatch, half)
    assert (again.step, again.total_steps, again.decay_start) == (240, 240, 168)


def rates_of(
    config: Config, seconds_per_step: Callable[[int], float], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[float], TrainingState]:
    """The share of the peak rate at every update of such a run, and where it ended."""
    state, rates = TrainingState(), []

    def seconds(step: int) -> float:
        place = config.lr_scheduler, step, state.total_steps, state.decay_start
        if len(rates) == step:  # the clock asks twice
            rates.append(learning_rate_share(*place))
        return seconds_per_step(step)

    run_on_a_clock(config, seconds, monkeypatch, state)
    return rates, state


def test_a_fall_that_is_due_at_once_is_one(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling on a busy machine took 90 of 150 seconds: 40 % is left, and the fall is 60 %."""
    bound = "training.max_steps=null", "training.max_minutes=2.5", "lr_scheduler.warmup_steps=50"
    config = tiny_config(*bound)
    rates, state = rates_of(config, lambda step: 89.0 if step == 0 else 0.5, monkeypatch)
    assert state.step == state.total_steps == pytest.approx(120, abs=3)
    assert 148 <= state.seconds <= 151
    assert max(rates) > 0.3  # it has risen
    assert rates[-1] < 0.02
    falls = [a - b for a, b in itertools.pairwise(rates[50:])]
    assert all(-1e-9 < fall < 0.03 for fall in falls)

    # So slow that there are hardly any steps: it ends in time, and the rate is no less.
    rates, state = rates_of(config, lambda step: 100.0 if step == 0 else 20.0, monkeypatch)
    assert state.step == state.total_steps
    assert 140 <= state.seconds <= 160
    assert state.step <= 4
    assert min(rates) > 0


def test_beside_another_program_a_run_of_minutes_ends_in_time(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = "training.max_steps=null", "training.max_minutes=10"
    config = tiny_config(*bound)

    def seconds(step: int) -> float:
        """0.3 a step; from the 1,200th on, in the middle of the fall, there is company."""
        return 0.3 if step < 1200 else 1.1 + 0.4 * math.sin(step)

    rates, state = rates_of(config, seconds, monkeypatch)
    assert state.step == state.total_steps
    assert 585 < state.seconds < 606
    assert rates[-1] < 0.06
    falls = [a - b for a, b in itertools.pairwise(rates[3:])]
    assert max(falls) < 0.02


def test_steps_that_do_not_fit_into_the_minutes_are_fewer_and_the_rate_falls_over_them(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("training.max_steps=1000", "training.max_minutes=2")
    rates, state = rates_of(config, lambda step: 0.5, monkeypatch)
    assert 118 <= state.seconds <= 121
    assert state.step == state.total_steps == pytest.approx(240, abs=4)
    assert rates[-1] < 0.02
    decay = state.step - (state.decay_start or 0)
    assert decay == pytest.approx(config.lr_scheduler.decay_share * state.step, abs=6)
    # And where they do fit, they are what was asked for.
    _, state = rates_of(config, lambda step: 0.05, monkeypatch)
    assert state.step == state.total_steps == 1000
    assert state.decay_start == 1000 - round(1000 * config.lr_scheduler.decay_share)


def test_time_left_and_the_share_that_is_done_do_not_move_with_the_speed(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(budget_module, "clock", lambda: now)
    one_process: Any = SimpleNamespace(num_processes=1)

    def shown(*settings: str) -> list[tuple[float, float]]:
        """(share done, seconds left) at each step: fast at first, then four times as slow."""
        nonlocal now
        now, found = 0.0, []
        budget = Budget(tiny_config(*settings), TrainingState(), one_process, num_rows=50)
        while not budget.finished():
            step = 0.5 if now < 60 else 2.0
            now += step
            budget.step_done(step)
            share, left = budget.share_done(), budget.seconds_left()
            assert share is not None
            assert left is not None
            found.append((share, left))
        return found

    for share, left in shown("training.max_steps=null", "training.max_minutes=2"):
        assert left == pytest.approx(120 * (1 - share))
    by_steps = shown("training.max_steps=20")
    assert [share for share, _ in by_steps] == pytest.approx([n / 20 for n in range(1, 21)])
    ended_by_time = shown("training.max_steps=1000", "training.max_minutes=2")
    assert ended_by_time[-1][0] > 0.98
    shares = [share for share, _ in ended_by_time]
    assert shares == sorted(shares)


def test_the_rate_never_jumps_when_the_end_moves(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = "training.max_steps=null", "training.max_minutes=2", "lr_scheduler.decay_share=0.6"
    config, state, rates = tiny_config(*bound), TrainingState(), []

    def seconds(step: int) -> float:
        place = config.lr_scheduler, step, state.total_steps, state.decay_start
        rates.append(learning_rate_share(*place))
        return 0.2 + 0.004 * step  # slower and slower, as a laptop that grows hot

    run_on_a_clock(config, seconds, monkeypatch, state)
    assert state.decay_start is not None
    assert state.step == state.total_steps
    assert 115 < state.seconds < 125
    warm = config.lr_scheduler.warmup_steps
    falls = [a - b for a, b in itertools.pairwise(rates[warm + 1 :])]
    assert all(-1e-9 < fall < 0.03 for fall in falls)
    assert rates[-1] < 0.03


def test_a_run_of_minutes_decays_to_its_end(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()  # a twentieth of a second at each look, however busy the machine is
    monkeypatch.setattr(budget_module, "clock", lambda: 0.05 * next(ticks))
    trainer = Trainer(
        tiny_config(
            "training.max_steps=null",
            "training.max_minutes=0.02",
            "training.save_steps=100000",
            "training.heldout_steps=100000",
        )
    )
    trainer.train()
    (last,) = checkpoints(trainer.folder)
    state = json.loads((last / "training_state.json").read_text(encoding="utf-8"))
    assert state["step"] > 5
    assert state["total_steps"] >= state["step"] > state["decay_start"] > 0
    log = read_log(trainer.folder / "log.jsonl")
    rates = [event["learning_rate"] for event in log if event["kind"] == "train"]
    assert rates[state["decay_start"] - 1] == 4e-3
    assert rates[-1] < 0.9e-3


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (["training.max_steps=null", "training.num_epochs=2"], math.ceil(2 * 50 / 4)),
        (["training.max_steps=null", "training.num_epochs=0.5"], math.ceil(0.5 * 50 / 4)),
        (["training.max_steps=null"], 1250),  # 100 passes if nothing is said
        (["training.max_steps=9", "training.num_epochs=2"], 9),
        (["training.max_steps=null", "training.num_epochs=4", "training.batch_size=16"], 13),
    ],
)
def test_steps_and_epochs_bound_a_run(
    settings: list[str],
    steps: int,
    tiny_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config(*settings, "lr_scheduler.decay_share=0.3")
    state = run_on_a_clock(config, lambda step: 0.1, monkeypatch)
    assert state.step == state.total_steps == steps
    assert state.decay_start == steps - round(0.3 * steps)
