"""TrainingState: the progress of a run, saved as training_state.json."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from limner.errors import LimnerError
from limner.files.small_files import read_json
from limner.messages import shorten, shorten_name


@dataclass
class TrainingState:
    """The progress of a run, changed only by its own methods. Derived values are not stored."""

    step: int = 0
    images: int = 0
    seconds: float = 0.0
    total_steps: int | None = None
    """None while a run bounded by minutes has not fixed it yet."""
    decay_start: int | None = None
    """Step at which the line of the decay begins; below 0 (before the run) if the run slowed
    down."""
    pieces: int = 1
    """Parts into which each micro-batch is split since memory ran out (see
    training/train_step.py)."""
    skipped: int = 0
    """Updates skipped because their loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    rolled_back_at: int | None = None
    """Step at which the weights were last rolled back, after too many skipped updates in a row."""

    def advance(self, images: int, seconds: float) -> None:
        """Count an update of this many pictures, which ended after `seconds` of the run."""
        self.step += 1
        self.images += images
        self.seconds = seconds

    def count_skipped(self, skipped: bool) -> None:
        """Record whether the current update was skipped."""
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    def split_micro_batches(self, pieces: int) -> None:
        """From now on, split each micro-batch into at least `pieces` parts."""
        self.pieces = max(self.pieces, pieces)

    def join_micro_batches(self) -> None:
        """Undo the splitting, because another batch size may fit."""
        self.pieces = 1

    def end_at(self, total_steps: int, decay_start: int) -> None:
        self.total_steps, self.decay_start = total_steps, decay_start

    def rewind(self, before: TrainingState) -> None:
        """Go back to an earlier step, to repeat its updates. The time spent and the number of
        pieces stay."""
        for name in ("step", "images", "skipped", "skipped_in_a_row", "rolled_back_at"):
            setattr(self, name, getattr(before, name))

    def become(self, other: TrainingState) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(other, field.name))

    def note_roll_back(self) -> None:
        """Record a roll-back: the weights are older, the image count continues."""
        self.rolled_back_at, self.skipped_in_a_row = self.step, 0

    @classmethod
    def read(cls, path: Path) -> TrainingState:
        """Read training_state.json. Raises LimnerError if it is not valid."""
        return cls.of(read_json(path), path)

    @classmethod
    def of(cls, values: Any, path: Path) -> TrainingState:
        """Build it from the parsed file. Raises LimnerError if that is not valid."""
        if not isinstance(values, dict):
            raise LimnerError(f"{path}: {shorten(values)} is not a training state")
        whole = {f.name for f in fields(cls)} - {"seconds"}
        for name, value in values.items():
            optional = value is None and name in ("total_steps", "decay_start", "rolled_back_at")
            kinds = int if name in whole else (int, float)
            good = isinstance(value, kinds) and not isinstance(value, bool)
            lowest = -(2**63) if name == "decay_start" else 0
            if not (optional or (good and lowest <= value < 2**63)):
                raise LimnerError(
                    f"{path}: {shorten_name(name)} is {shorten(value)}, but must be a number of at "
                    f"least {lowest}"
                )
        try:
            return cls(**values)
        except TypeError:
            unknown = [shorten_name(name) for name in values if name not in whole | {"seconds"}]
            raise LimnerError(f"{path}: {', '.join(unknown)} is not known") from None
