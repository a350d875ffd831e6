"""Settings of `limner distill`: a model of few steps, made from one that needs many."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from limner.config.types import NonNegative, PositiveInt, Section


class DistillConfig(Section):
    """Of a run with `model.flow_map`. Its teacher is the model in `training.init_from`."""

    num_trajectories: Annotated[PositiveInt, Field(le=10_000_000)] | None = None
    """Number of pictures that the teacher draws, of which every step is kept to learn from. None:
    512 for each of `training.max_minutes` (without these, 4 for each training picture), at least
    1,024 and at most 16,384."""
    num_inference_steps: Annotated[PositiveInt, Field(le=64)] = 8
    """Steps in which the teacher draws them, a multiple of 4. The student can draw in this many, in
    1, and in every number between that divides it."""
    guidance_scale: NonNegative | tuple[NonNegative, NonNegative] | None = None
    """Guidance scale of the teacher, which becomes part of the student. None: as in the teacher's
    own configuration. A range, as [1, 6]: the guidance scale remains a setting of the student, in
    this range; the interval and the type of guidance become part of it."""
    fingerprint: str | None = None
    """Hash of the teacher's weights and of its sampling settings, saved in checkpoints. Another
    teacher is rejected."""

    @property
    def guidance_range(self) -> tuple[float, float] | None:
        """The guidance scales that the student is told and can draw with; None: it is told none."""
        return self.guidance_scale if isinstance(self.guidance_scale, tuple) else None

    @property
    def numbers_of_steps(self) -> list[int]:
        """In how many steps the student learns to draw, ascending."""
        most = self.num_inference_steps
        return [n for n in range(1, most + 1) if most % n == 0]
