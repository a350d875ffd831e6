"""At the end of a run: whether its losses show that it has memorised."""

from typing import Any

import pytest

from limner.evaluation.summary import learned_by_heart


def results(held_out: float, trained: float, counts: tuple[int, int] = (64, 64)) -> dict[str, Any]:
    about = {"step": 100, "held_out": held_out, "trained": trained}
    return {"losses": {**about, "held_out_count": counts[0], "trained_count": counts[1]}}


def test_both_figures_are_told_and_what_helps() -> None:
    (said,) = learned_by_heart(results(0.1721, 0.0584))
    assert "the loss is 0.058 on trained pictures and 0.172 on held-out ones" in said
    assert "more pictures" in said


@pytest.mark.parametrize(
    ("held_out", "trained", "counts"),
    [
        (0.132, 0.128, (64, 64)),
        (0.0175, 0.0147, (39, 64)),  # of 3,694 emoji
        (0.09, 0.1, (64, 64)),
        (0.18, 0.1, (4, 16)),  # so few pictures may differ by this
    ],
)
def test_a_gap_that_may_be_chance_or_is_small_is_not(
    held_out: float, trained: float, counts: tuple[int, int]
) -> None:
    assert learned_by_heart(results(held_out, trained, counts)) == []


def test_of_few_pictures_only_a_large_one_counts() -> None:
    assert learned_by_heart(results(0.18, 0.1, (4, 16))) == []
    assert len(learned_by_heart(results(0.3, 0.1, (4, 16)))) == 1
    assert len(learned_by_heart(results(0.18, 0.1))) == 1


@pytest.mark.parametrize("found", [{}, {"losses": None}])
def test_nothing_is_said_where_it_was_not_measured(found: dict[str, Any]) -> None:
    assert learned_by_heart(found) == []
